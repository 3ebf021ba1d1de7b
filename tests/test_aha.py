"""plots/aha.py and plots/compare.py: what is measured, the statistics, and figures from odd runs."""

import json
import math

import numpy as np
import pytest
from test_plots import ODD, quick, run_rows  # noqa: F401  (quick is a fixture)
from test_report import folder, sample, some_samples

from commands import plot
from plots import aha, behaviours, compare
from plots.runs import NotARun, load_run, load_runs
from plots.statistics import bootstrap, bootstrap_ratio, clustered, pass_at_k, student, wilson
from runtime.runfolder import UserError

EXAMPLE = {"nums": [3, 5, 8], "target": 16}


def does(text, example=EXAMPLE):
    reading = behaviours.attempts.read(text, example) if behaviours.countdown_like(example) else None
    return behaviours.measure(text, example, reading, behaviours.find_words(text))


# ---------------------------------------------------------------- behaviours


def test_countdown_is_parsed():
    text = "<think>3+5=8, 8*8=64, want 16: no\n5+3=8, 8*8=63, want 16: no\n5-3=2, 8*2=16, want 16: yes\n"
    text += "</think>\n"
    found = does(text + "<answer>(5-3)*8</answer>")
    expected = {
        "attempts": 3,
        "checks": 3,
        "verdicts_right": 3,
        "backtracks": 2,
        "repeats": 1,
        "equations": 6,
    }
    expected |= {"wrong_equations": 1, "from_success": 1, "reflects": 1, "code": 0, "mixed": 0, "oat": 0}
    assert {key: found[key] for key in expected} == expected
    assert does(text + "<answer>8+5+3</answer>")["from_success"] == 0 and "from_success" not in does(text)
    guess = does("3+5=8, 8*8=64</think><answer>(3+5)*8</answer>")
    assert not guess["reflects"] and guess["from_success"] == 0 and guess["attempts"] == 1


def test_multiplication_counts_decomposition_steps():
    problem = {"a": 23, "b": 47}
    at_once = does("<think>23*47=1081</think>\n<answer>1081</answer>", problem)
    assert (at_once["steps"], at_once["reflects"], "attempts" in at_once) == (0, 0, False)
    worked = does("<think>23*40=920\n23*7=151\n920+151=1071</think>\n<answer>1071</answer>", problem)
    assert (worked["steps"], worked["equations"], worked["wrong_equations"], worked["reflects"]) == (
        3,
        3,
        1,
        1,
    )


@pytest.mark.parametrize(
    "text, oat, simplerl",
    [
        ("Let me RECHECK this. Rechecking prechecked rethinker.", 1, 1),
        ("Let's double-check, think  again and go over the\nsteps; re-evaluate!", 3, 0),
        ("Wait, that waiter awaits. However, alternatively: try again.", 0, 4),
        ("让我们重新检查一下，等等，再试。", 1, 2),
        ("", 0, 0),
    ],
)
def test_keywords_are_whole_words_in_any_case(text, oat, simplerl):
    found = does(text, {})
    assert (found["oat"], found["simplerl"]) == (oat, simplerl)


@pytest.mark.parametrize(
    "text, code, mixed",
    [
        ("```python\nx = 1\n```", 1, 0),
        ("First:\n    for i in range(3):\n", 1, 0),
        ("print(3+5)", 1, 0),
        ("We import nothing, and for each in turn: no. A fingerprint (3).", 0, 0),
        ("<think>我们需要得到十六</think><answer>8*2</answer>", 0, 0),  # the tags are no language
        ("First we try 三加五等于八 and then we stop", 0, 1),
        ("The angle is α, and that is all there is to be said about it here", 0, 0),
    ],
)
def test_code_and_mixed_languages(text, code, mixed):
    found = does(text, {})
    assert (found["code"], found["mixed"]) == (code, mixed)


# ---------------------------------------------------------------- statistics


def test_wilson_by_hand():
    assert wilson(0, 10) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == (0.5, pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(10, 10)[2] == pytest.approx(1)


def test_bootstrap_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [bootstrap(rng.normal(size=60))[1:] for _ in range(200)]
    assert 0.89 < np.mean([low < 0 < high for low, high in intervals]) <= 0.99
    assert bootstrap([2.0]) == (2, None, None)


def test_an_interval_at_the_ends_has_a_width_or_is_not_drawn():
    for n in (1, 7, 10, 128):
        assert wilson(0, n)[:2] == (0, 0) and wilson(n, n)[::2] == (1, 1)
        assert bootstrap([0.0] * n, share=True) == wilson(0, n)
        assert bootstrap([1.0] * n, share=True) == wilson(n, n)
        assert bootstrap([3.0] * n) == (3, None, None)
        assert bootstrap_ratio(np.array([[4.0, 4.0]] * n + [[0.0, 0.0]])) == wilson(n, n)
    wrong = {f"p{i}": [{"correct": False}] * 2 for i in range(10)}
    (base, _) = aha.coverage({}, None, [("base", wrong), ("trained", wrong)]).series
    assert base.points == [[k, *wilson(0, 10)] for k in (1, 2)]
    assert compare.gap((0.0, 0.0, 0.0, 9), True) == "+0.0 points"
    assert compare.gap((0.1, 0.0, 0.2, 9), True) == "+10.0 points [+0.0, +20.0]"


def test_student_as_in_the_tables():
    for p, freedom, known in ((0.975, 10, 2.228), (0.999, 7, 4.785), (0.95, 60, 1.671), (0.9995, 20, 3.850)):
        assert student(p, freedom) == pytest.approx(known, rel=0.01)


def test_samples_of_one_problem_widen_the_interval():
    # one sample per problem: Wilson's own
    assert clustered([[True], [False], [True]]) == wilson(2, 3)
    # copies
    assert clustered([[True] * 4, [False] * 4] * 10) == pytest.approx(wilson(10, 20))
    # never narrower than independent ones
    assert clustered([[True, False]] * 10) == wilson(10, 20)
    # nothing tells how alike they are
    assert clustered([[False] * 8] * 5) == pytest.approx(wilson(0, 5))
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):  # problems that differ: chances spread evenly over 0 ... 1
        groups = (rng.random((40, 8)) < rng.random((40, 1))).tolist()
        _, low, high = clustered(groups)
        covered += low < 0.5 < high
    assert 0.9 < covered / 300 < 0.99


def test_pass_at_k_by_hand():
    assert [pass_at_k(4, 1, k) for k in (1, 2, 4)] == [0.25, 0.5, 1]
    assert pass_at_k(64, 0, 64) == 0 and pass_at_k(64, 64, 1) == 1


def loaded(tmp_path, samples, **more):
    path = folder(tmp_path / "run", samples=samples, **more)
    return load_run(path), behaviours.run_samples(path)


def test_the_aha_step_is_the_first_that_chance_does_not_explain(tmp_path):
    rng = np.random.default_rng(0)

    def responses(step, share):
        reflective = rng.random(60) < share
        return [
            sample(step, p, correct=True) if r else sample(step, p, "3+5=8, 8*8=64")
            for p, r in enumerate(reflective)
        ]

    samples = [
        s for step, share in ((0, 0.3), (10, 0.32), (20, 0.9), (30, 1)) for s in responses(step, share)
    ]
    evals = behaviours.evaluations(loaded(tmp_path, samples)[1])
    found = aha.first_aha(aha.aha_steps(evals))
    assert found.step == 20 and 0 < found.low < found.now - found.base and found.problems == 60
    assert aha.sentence(evals).startswith("Aha step 20: ")
    assert aha.best_sample(evals, 20)["does"]["backtracks"] == 1
    still = [s for step in (0, 10, 20) for s in responses(step, 0.4)]
    evals = behaviours.evaluations(loaded(tmp_path / "still", still)[1])
    assert "no aha moment" in aha.sentence(evals) and not aha.aha_steps(evals)


def behaving(values) -> dict:
    """An evaluation with so many attempts, one sample per problem."""
    return {str(p): [{"does": {"attempts": a, "reflects": 0}}] for p, a in enumerate(values)}


@pytest.mark.parametrize("problems", [8, 64])
def test_false_aha_moments_are_rare(problems):
    """Where nothing changes, of 200 runs with 6 evaluations at most about one in twenty finds one."""
    rng, false = np.random.default_rng(3), 0
    for _ in range(200):
        evals = {step: behaving(rng.geometric(0.5, problems)) for step in range(7)}
        false += bool(aha.aha_steps(evals))
    assert false <= 14


def test_an_aha_moment_has_a_margin():
    """Beyond chance, and too small to speak of: broken text that reads as another attempt."""
    base, little, much = (behaving([2.0] * more + [1.0] * (400 - more)) for more in (0, 25, 400))
    assert "at the one evaluation after" in aha.sentence({0: base, 1: little})
    assert "none of the 2 evaluations" in aha.sentence({0: base, 1: little, 2: little})
    assert aha.first_aha(aha.aha_steps({0: base, 1: little, 2: much})).step == 2


def by_title(charts):
    return {chart.title: chart for chart in charts}


def test_panels_hold_the_right_numbers(tmp_path):
    run, samples = loaded(tmp_path, some_samples())
    panels = by_title(aha.charts(run, samples))
    gains = {series.label: series.points for series in panels["What responses do more of"].series}
    assert gains["attempts"][0][:2] == [0, 0] and gains["attempts"][1][:2] == [5, pytest.approx(2 / 3)]
    help_ = panels["Does reflecting help?"]
    # one response per problem
    assert not help_.series and help_.note.startswith("Known when")
    low, high = gains["checks"][1][2:]
    assert low < 4 / 3 < high  # 20 of 30 problems gained two checks


def test_pass_at_k_from_evaluations_with_many_samples(tmp_path):
    run, samples = loaded(tmp_path, some_samples())
    for name, share in (("base", 0.25), ("trained", 0.5)):
        rows = [sample(0, p, correct=i < 64 * share) for p in range(12) for i in range(64)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = aha.sides_of({"base": tmp_path / "base", "trained": tmp_path / "trained"}, "countdown")
    base, trained = aha.coverage(behaviours.evaluations(samples), run, sides).series
    assert [p[0] for p in base.points] == [1, 2, 4, 8, 16, 32, 64]
    assert base.points[0][1] == pytest.approx(0.25) and trained.points[-1][1] == 1


def test_problems_that_one_model_alone_ever_solves(tmp_path, capsys):
    """Of 10 common problems: 0-3 both, 4-6 the trained model alone, 7 the base alone, 8 and 9 neither."""
    solves = {"base": {0, 1, 2, 3, 7, 10}, "trained": {0, 1, 2, 3, 4, 5, 6}}
    for name, samples in (("base", 3), ("trained", 2)):
        problems = range(11) if name == "base" else range(10)
        rows = [sample(0, p, correct=p in solves[name] and not i) for p in problems for i in range(samples)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder(tmp_path / "run", samples=some_samples())
    argv = ["aha", str(path), "--trained", str(tmp_path / "trained")]
    assert plot.main(argv) == 0 and "never solves" not in capsys.readouterr().out
    assert plot.main([*argv, "--base", str(tmp_path / "base")]) == 0
    told = capsys.readouterr().out
    assert "Of 10 problems, the trained model solves 3 at least once that the base never solves, and" in told
    assert "the base 1 that the trained model never solves" in told
    assert "3 of the base model and 2 of the trained model" in told
    assert "| trained only | 3 | 30.0% | 10.8% … 60.3% |\n| base only | 1 | 10.0% | 1.8% … 40.4% |" in told
    assert "| both | 4 | 40.0% | 16.8% … 68.7% |\n| neither | 2 | 20.0% | 5.7% … 51.0% |" in told
    sides = [("base", {"a": [{"correct": True}]}), ("trained", {"b": [{"correct": True}]})]
    assert "no problem in common" in aha.solved(sides)


def test_pass_at_k_takes_one_set_of_the_runs_own_task(tmp_path):
    sets = {"countdown:numbers=3": 4, "countdown:numbers=3 (greedy)": 1, "multiplication": 4}
    rows = [sample(0, p) | {"task": name} for name, n in sets.items() for p in range(5) for _ in range(n)]
    path = tmp_path / "eval_samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((_, problems),) = aha.sides_of({"base": tmp_path, "trained": None}, "countdown")
    assert [len(samples) for samples in problems.values()] == [4] * 5
    with pytest.raises(NotARun, match="holds 0 sets of gsm8k"):
        aha.sides_of({"base": path}, "gsm8k")


def test_all_samples_of_an_evaluation_take_the_place_of_the_few(tmp_path):
    path = folder(tmp_path / "run", samples=some_samples())
    rows = [sample(0, p, correct=i < 2) | {"split": "test"} for p in range(30) for i in range(4)]
    (path / "eval_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evals = behaviours.evaluations(behaviours.run_samples(path))
    assert [sum(map(len, problems.values())) for problems in evals.values()] == [120, 30, 30]


# ---------------------------------------------------------------- figures and commands


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_are_drawn(tmp_path, name, quick, capsys):  # noqa: F811
    rows, tail = ODD[name]
    path = folder(tmp_path / "odd", rows, some_samples(2) if name == "one step" else (), tail)
    assert plot.main(["aha", str(path)]) == 0 and (path / "plots/aha.pdf").exists()
    other = folder(tmp_path / "other", samples=some_samples(), seed=1)
    assert plot.main(["compare", str(path), str(other)]) == 0 and (path / "plots/compare.md").exists()
    assert "aha" in capsys.readouterr().out


def test_the_figures_are_whole(tmp_path):
    path = folder(tmp_path / "run", samples=some_samples())
    assert plot.main(["aha", str(path), "--out", str(tmp_path / "out")]) == 0
    assert plot.main(["compare", str(path), "--out", str(tmp_path / "out")]) == 0
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert set(sizes) == {"aha.png", "aha.pdf", "compare.png", "compare.pdf", "compare.md"}
    assert all(size > 10_000 for name, size in sizes.items() if not name.endswith(".md"))


def test_samples_from_elsewhere(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    path.write_text(
        '{"text": "Wait, let me recheck.", "prompt": "p"}\n{"text": "```\\n1\\n```"}\nnot json\n[]\n'
    )
    assert plot.main(["aha", str(path), "--field", "text"]) == 0
    out = capsys.readouterr().out
    assert "mean of 2 responses to 2 problems" in out and "| oat | 0.500" in out and "| code | 0.500" in out
    with pytest.raises(UserError, match="give its key with --field"):
        plot.main(["aha", str(path)])


def test_seeds_are_grouped_and_groups_compared(tmp_path):
    good = [folder(tmp_path / f"mini{i}", samples=some_samples(), seed=i) for i in range(3)]
    flat = [s | {"correct": False} for s in some_samples()]
    bad = [folder(tmp_path / f"guess{i}", samples=flat, seed=i, model="runs/guess") for i in range(2)]
    groups = compare.grouped(load_runs([*good, *bad]))
    assert {name: len(runs) for name, runs in groups.items()} == {"model minibase": 3, "model guess": 2}
    text = compare.table(groups)
    assert "| model minibase | 3 | 20.0 ± 0.0 % | 80.0 ± 0.0 % |" in text
    mean, low, high, n = compare.difference(*(compare.answers(runs) for runs in groups.values()), "correct")
    assert n == 30 and mean == pytest.approx(-2 / 3) and low < mean < high < 0
    assert f"| model guess | {100 * mean:+.1f} points [" in text and "too narrow" not in text
    shown = compare.figure(groups).legends[0].get_texts()
    assert [text.get_text() for text in shown] == ["model minibase: 3 seeds", "model guess: 2 seeds"]
    # an option that the others do not have
    newer = folder(tmp_path / "newer", samples=some_samples(), seed=3, option="new")
    groups = compare.grouped(load_runs([*good, newer, bad[0]]))
    assert [len(runs) for runs in groups.values()] == [4, 1] and "too narrow" in compare.table(groups)


def digests(path, **found):
    content = json.loads((path / "config.json").read_text()) | {"environment": found}
    (path / "config.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("key", ["task_digest", "model_digest", "changes_digest"])
def test_what_differs_in_a_digest_is_never_pooled(tmp_path, key):
    known = {"task_digest": "aa", "model_digest": "bb", "changes_digest": ""}
    runs = [digests(folder(tmp_path / f"mini{i}", seed=i), **known) for i in range(2)]
    runs.append(digests(folder(tmp_path / "edited", seed=2), **known | {key: "cc"}))
    groups = compare.grouped(load_runs(runs))
    assert [len(members) for members in groups.values()] == [2, 1] and f"{key} cc" in groups
    unknown = digests(folder(tmp_path / "old", seed=3), **known | {key: None})
    groups = compare.grouped(load_runs([*runs, unknown]))
    assert [len(members) for members in groups.values()] == [3, 1]


def test_a_second_run_of_a_seed_is_no_second_seed(tmp_path):
    runs = [folder(tmp_path / name, seed=seed) for name in "ab" for seed in (0,)]
    runs += [folder(tmp_path / f"{name}1", seed=1) for name in "ab"]
    groups = compare.grouped(load_runs(runs))
    assert [[run.name for run in members] for members in groups.values()] == [["a", "a1"], ["b", "b1"]]
    assert "± 0.0" not in compare.table(compare.grouped(load_runs(runs[:2])))


def test_a_comparison_has_the_panels_of_its_task(tmp_path):
    rows = [{"step": 1, "reward": 0.5, "accuracy": 0.5, "tokens": 30, "entropy": 0.1, "decomposes": 0.3}]
    titles = {}
    for name, own in (("countdown", run_rows()), ("multiplication", rows)):
        groups = compare.grouped([load_run(folder(tmp_path / name, own))])
        titles[name] = {chart.title for chart in compare.charts(groups)}
        assert [ax.get_visible() for ax in compare.figure(groups).axes].count(True) == len(titles[name])
    assert "Responses that search" in titles["countdown"] - titles["multiplication"]
    assert titles["multiplication"] - titles["countdown"] == {"Responses that decompose"}


def test_differences_are_on_common_problems_alone(tmp_path):
    one = [{"a": [sample(0)], "b": [sample(0, correct=False)], "c": [sample(0)]}]
    other = [{"a": [sample(0, correct=False)], "b": [sample(0, correct=False)], "d": [sample(0)]}]
    for side in (one, other):
        for samples in side[0].values():
            samples[0]["does"] = {}
    mean, low, high, n = compare.difference(one, other, "correct")
    assert n == 2 and mean == -0.5 and -1 <= low <= high <= 0
    assert compare.difference(one, [{"z": other[0]["d"]}], "correct") is None
    assert math.isnan(compare.last_evaluation(load_run(folder(tmp_path / "x", run_rows()[:1])), "accuracy"))
