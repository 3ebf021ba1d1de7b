"""Does reflecting help: the difference within a problem, and a failed check forced on wrong guesses."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from test_report import folder, sample

import tinyr1
from commands import reflect
from plots import aha
from plots.behaviours import measured
from plots.reflection import COLUMNS, effects, gain_within_problems, interval, table_of_seeds
from plots.runs import load_run
from runtime.runfolder import HERE

SEARCH = "3+5=8, 8*8=64, want 16: no\n5-3=2, 8*2=16, want 16: yes"
GUESS = "3+5=8, 8*8=64"
QUICK = "--eval_problems 5 --eval_samples 4 --max_new_tokens 64 --device cpu".split()


def run(*argv):
    return tinyr1.main(["reflect", *map(str, argv)])


def responses(problem, *kinds):
    """Samples of a problem: (reflects, right)."""
    rows = [sample(0, problem, SEARCH if reflects else GUESS, bool(right)) for reflects, right in kinds]
    return [measured(row, row["completion"]) for row in rows]


# ---------------------------------------------------------------- within a problem


def test_a_problem_is_compared_with_itself():
    """In an easy problem few responses reflect, in a hard one most do. Reflecting helps in both, though over
    all responses those that reflect are right less often: 3 of 7 against 4 of 7.
    """
    easy = responses(0, (1, 1), (1, 1), (0, 1), (0, 1), (0, 1), (0, 1), (0, 0))
    hard = responses(1, (1, 1), (1, 0), (1, 0), (1, 0), (1, 0), (0, 0), (0, 0))
    known = responses(2, (1, 1), (1, 1))
    gain = gain_within_problems({"easy": easy, "hard": hard, "known": known})
    assert gain.tolist() == pytest.approx([1 - 4 / 5, 1 / 5])
    assert interval(gain_within_problems({"known": known})) == {
        "mean": None, "low": None, "high": None, "problems": 0,
    }  # fmt: skip


def test_the_panel_and_the_words_show_it(tmp_path):
    kinds = [((1, 1), (0, 0)), ((1, 1), (0, 1)), ((1, 0), (0, 0)), ((1, 1), (1, 1))]
    rows = [
        sample(step, p, SEARCH if reflects else GUESS, bool(right))
        for step in (0, 5)
        for p in range(20)
        for reflects, right in kinds[p % 4]
    ]
    path = folder(tmp_path / "run", samples=rows)
    told = aha.write(path)
    # of 15 problems with both kinds, 5 differ by 1
    assert "P(right | reflects) − P(right | does not), in points [95 %]: +33.3 [" in told
    assert "of 15 problems (base), +33.3 [" in told and "forced" not in told
    figure = {"mean": 0.25, "low": 0.125, "high": 0.5, "problems": 9}
    side = {
        column: {row: figure for row in ("forced_minus_unforced", "forced_minus_new")} for column in COLUMNS
    }
    side["certain"] = {row: interval([]) for row in side["all"]}
    (path / "reflect.json").write_text(json.dumps({"sides": {"base": side, "trained_from_base": side}}))
    told = aha.write(path)
    assert "against none, all problems: +25.0 [+12.5, +50.0] of 9 problems (base), +25.0 [" in told
    assert "new responses, least certain" in told and "new responses, the others" not in told
    charts = aha.charts(load_run(path), aha.run_samples(path))
    (chart,) = [c for c in charts if c.title == "Does reflecting help?"]
    gain, against_none, _ = chart.series
    assert [point[:2] for point in gain.points] == [[0, pytest.approx(1 / 3)], [5, pytest.approx(1 / 3)]]
    assert against_none.points == [[0, 0.25, 0.125, 0.5], [5, 0.25, 0.125, 0.5]] and "Forced" in chart.note


# ---------------------------------------------------------------- the forced check


@pytest.mark.parametrize(
    "text, is_wrong_guess",
    [
        ("<think>3+5=8, 8*8=64</think>\n<answer>(3+5)*8</answer>", True),
        ("<think>3+5=8, 8+8=16</think>\n<answer>(3+5)+8</answer>", False),  # right
        ("<think>3+5=8, 8*8=16</think>\n<answer>(3+5)*8</answer>", False),  # a check would not say no
        ("<think>3+5=8, 8*8=64, want 16: no\n</think>\n<answer>(3+5)*8</answer>", False),
        ("<think>3+5=8, 8*8=64\n8+5=13, 13*3=39</think>\n<answer>(8+5)*3</answer>", False),
        ("<think>3+5=8, 8*8=64", False),
        ("<think></think>\n<answer>(3+5)*8</answer>", False),
    ],
)
def test_wrong_guesses_are_found(text, is_wrong_guess):
    example = {"nums": [3, 5, 8], "target": 16}
    correct = tinyr1.tasks.load("countdown").reward(text, example)["correct"]
    found = measured({"example": example, "correct": correct}, text)
    assert reflect.is_wrong_guess(found) == is_wrong_guess


def test_effects_by_hand():
    """Problem a: 2 of 4 right after the check, 0 of 4 without it, 1 of 2 new; b: 1, 1 and 0 of 2."""

    def right(problem, *outcomes):
        return responses(problem, *((0, outcome) for outcome in outcomes))

    arms = {
        "answers": {"a": responses(0, (1, 1), (0, 0)), "b": right(1, 0), "c": right(2, 1)},
        "new": {"a": right(0, 1, 0), "b": right(1, 0, 0), "c": right(2, 1, 1)},
        "forced": {"a": right(0, 1, 1, 0, 0), "b": right(1, 1, 1)},
        "unforced": {"a": responses(0, (0, 0), (0, 0), (1, 0), (0, 0)), "b": right(1, 1, 1)},
    }
    found = effects(arms, {"a", "b", "c"})
    means = {name: (figure["mean"], figure["problems"]) for name, figure in found.items()}
    assert means == {
        "forced": (0.75, 2), "unforced": (0.5, 2), "new": (0.25, 2), "unforced_reflects": (0.125, 2),
        "forced_minus_unforced": (0.25, 2), "forced_minus_new": (0.5, 2), "spontaneous": (1, 1),
    }  # fmt: skip
    assert (found["forced_minus_unforced"]["low"], found["forced_minus_unforced"]["high"]) == (0, 0.5)
    assert effects(arms, {"c"})["forced_minus_new"]["problems"] == 0


@pytest.fixture
def scripted(monkeypatch):
    """Function: every answer is a guess whose value is the target plus `miss`. What follows a forced check is
    right, what follows without one is wrong. Returns the list of what is asked: (seed, arm, prompt).
    """
    asked = []

    def script(miss):
        def answer(model, tokenizer, problems, k, cfg, seed):
            texts = []
            for problem in problems:
                assert tokenizer.decode(problem.prompt_ids) == problem.prompt
                target, nums = problem.example["target"], problem.example["nums"]
                asked.append((seed & 0xFFFFFF, seed >> 24, problem.prompt))
                begun = "<think>" in problem.prompt
                solved = begun and problem.prompt.endswith(f", want {target}: no\n")
                expression = tinyr1.tasks.load("countdown").solve(nums, target) if solved else "1"
                guess = "" if begun else f"<think>{nums[0]}+{nums[1]}={target + miss}"
                texts += [f"{guess}</think>\n<answer>{expression}</answer>"] * k
            length = torch.full((len(texts),), 9)
            return SimpleNamespace(length=length, finished=length > 0), texts

        monkeypatch.setattr(tinyr1, "sample", answer)
        return asked

    return script


def test_a_check_is_forced_on_wrong_guesses(scripted, tmp_path, capsys):
    asked = scripted(miss=1)
    path = tmp_path / "run"
    shutil.copytree(HERE / "minibase", path / "final", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    cfg, _ = tinyr1.parse(["mini"])
    (path / "config.json").write_text(json.dumps({"config": vars(cfg)}))
    assert run(path, *QUICK) == 0
    told = capsys.readouterr().out
    assert "trained_from_base, the base's 20 wrong guesses:" in told and str(path / "reflect.json") in told
    assert "right after a forced check          100.0 [56.6, 100.0] of 5" in told
    assert "forced check − none                 +100.0 of 5" in told
    record = json.loads((path / "reflect.json").read_text())
    assert record["config"]["seed"] == 0 and list(record["sides"]) == ["base", "trained", "trained_from_base"]
    for side in record["sides"].values():
        assert (side["wrong_guesses"], side["responses"]) == (20, 20)
        assert [side[group]["forced"]["problems"] for group in COLUMNS] == [5, 1, 4]
        assert side["all"]["new"]["mean"] == side["all"]["unforced"]["mean"] == 0
    rows = table_of_seeds([path]).split("\n")
    assert sum(row.startswith(("| base, run |", "| trained, run |")) for row in rows) == 2 * len(COLUMNS)
    assert rows[2].startswith("| base, run | 100.0 [56.6, 100.0] of 5 | ")
    prompts = [prompt for _, arm, prompt in asked if arm == 3]
    assert len(prompts) == 3 * 20 and all("<think>" in p and ": no\n" in p for p in prompts)
    assert {seed for seed, _, _ in asked} == {12345} and {arm for _, arm, _ in asked} == {0, 1, 2, 3}


def test_the_uncertain_problems_have_the_highest_entropy(scripted, tmp_path):
    scripted(miss=1)
    cfg, _ = tinyr1.parse(["--model", "minibase", *QUICK, "--precision", "fp32"], reflect.Reflect)
    (own,) = reflect.sets(cfg).values()
    probe = reflect.Probe(own)
    entropies = {}
    for name, samples in probe.answers.items():
        start = len(probe.problems[name].prompt_ids)
        text = name + samples[0]["completion"].split("</think>")[0]
        ids = torch.tensor([probe.tokenizer(text).input_ids])
        chances = probe.model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        entropies[name] = -(chances.exp() * chances).sum(-1).mean().item()
    assert probe.groups["uncertain"] == {max(entropies, key=entropies.get)}
    assert probe.groups["certain"] == probe.groups["all"] - probe.groups["uncertain"]


def test_the_miniature_is_probed_and_its_seed_decides(tmp_path):
    argv = ["--model", "minibase", *QUICK, "--out", tmp_path]
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(*argv, "--name", name, "--seed", seed) == 0
        found.append(
            json.loads((tmp_path / f"reflect-{name}" / "reflect.json").read_text())["sides"]["model"]
        )
    assert found[0] == found[1] != found[2] and found[0]["wrong_guesses"] > 0


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--task", "multiplication"], "reflect takes that alone"),
        (["--task_args", "wording=tinyzero"], "reflect takes that alone"),
        (["--template", "tinyzero"], "reflect takes that alone"),
        (["--task", "countdown,multiplication"], "reflect takes one task"),
        (["--temperature", 0], "the same answer every time"),
        (["--continuations", 0], "--continuations"),
    ],
)
def test_what_it_does_not_take_is_refused(argv, message, capsys, tmp_path):
    assert run("--model", "minibase", *QUICK, "--out", tmp_path, *argv) == 2
    assert message in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_a_model_that_never_guesses_wrongly_is_refused(scripted, capsys, tmp_path):
    scripted(miss=0)
    assert run("--model", "minibase", *QUICK, "--out", tmp_path) == 2
    assert "minibase makes no wrong guess" in capsys.readouterr().err
