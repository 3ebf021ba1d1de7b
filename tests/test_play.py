"""play: what is typed becomes a problem, answers are those of rollout.generate, streamed and judged."""

import io
import random
import re

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks
import tinyr1
from commands import play
from runtime.problems import held_out, pose
from tasks import countdown, multiplication

QUICK = (
    "--prompts 2 --group 4 --max_new_tokens 24 --overlong_buffer 4 --eval_problems 4 --eval_samples 1".split()
)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """{preset: run folder} of two trained models."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.runfolder.Pictures.refresh", lambda self: None)
        patch.setattr("runtime.runfolder.Pictures.finish", lambda self: "")
        for preset in ("mini", "mini-multiply"):
            argv = [
                "train",
                preset,
                "--model",
                tiny,
                "--out",
                str(out),
                "--name",
                preset,
                "--steps",
                "1",
                *QUICK,
            ]
            assert tinyr1.main([*argv, "--lr", "0.01", "--probe_every", "0"]) == 0
    return {preset: out / preset for preset in ("mini", "mini-multiply")}


def run(*argv):
    return tinyr1.main(["play", *map(str, argv)])


# ---------------------------------------------------------------- problems


@pytest.mark.parametrize("text", ["3 8 5 = 16", "3, 8, 5 -> = 16 ", "[3,8,5]=16", "3 8 5=16?"])
def test_countdown_reads_problems(text):
    assert countdown.parse(text) == {"nums": [3, 8, 5], "target": 16}


@pytest.mark.parametrize("text", ["23*47", "What is 23 x 47?", "23×47", "23 times 47 ="])
def test_multiplication_reads_problems(text):
    assert multiplication.parse(text) == {"a": 23, "b": 47}


@pytest.mark.parametrize("task", [countdown, multiplication])
@pytest.mark.parametrize("text", ["?", "3 8 5", "= 16", "3 8 = 1 2", "23*", "9" * 5000, "3*4*5"])
def test_what_is_no_problem_is_refused(task, text):
    with pytest.raises(tasks.TaskError, match="is no problem: give .* such as"):
        task.parse(text)


def test_a_problem_is_found_typed_numbered_or_drawn(tiny):
    cfg, tokenizer = tinyr1.parse(["mini"])[0], AutoTokenizer.from_pretrained(tiny)
    held = held_out(countdown, cfg, tokenizer)
    find = lambda text, task=countdown: play.find_problem(text, task, held, cfg, tokenizer, random.Random(0))
    typed = find("3 8 5 = 16")
    assert typed.prompt == "Make 16 from 3, 8, 5.\n" == tokenizer.decode(typed.prompt_ids)
    assert typed.example == {"nums": [3, 8, 5], "target": 16, "reward": "binary", "wording": "short"}
    assert find(" 7\n") is held[7] and find("") in held
    without = type("task", (), {})
    with pytest.raises(tasks.TaskError, match="number from 0 to 391"):
        find("3 8 5 = 16", without)
    with pytest.raises(tasks.TaskError):
        find("500")


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_answers_are_those_of_generate(tiny, temperature):
    cfg = tinyr1.parse(["mini", "--max_new_tokens", "40", "--overlong_buffer", "4"])[0]
    cfg.temperature = temperature
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    problem = pose(countdown, {"nums": [3, 8, 5], "target": 16, "wording": "short"}, cfg, tokenizer)
    for seed in range(3):
        roll, (text,) = tinyr1.sample(model, tokenizer, [problem], 1, cfg, seed)
        answer, texts = play.Answer("base", model, tokenizer, cfg, problem, seed), [""]
        while answer.going:
            answer.advance()
            texts.append(answer.shown)
        assert answer.text == text and answer.length == roll.length and answer.finished == roll.finished
        assert all(b.startswith(a) for a, b in zip(texts, texts[1:]))


def test_a_stop_string_and_the_models_positions_end_an_answer(tiny, monkeypatch):
    cfg = tinyr1.parse(["mini"])[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    said = iter(tokenizer("1+1\nUser: more").input_ids)
    monkeypatch.setattr(play, "sample_tokens", lambda *_: said)
    monkeypatch.setitem(tasks.STOPS, cfg.template, ["\nUser:"])
    answer = play.Answer("base", model, tokenizer, cfg, tinyr1.Problem({}, "", [1]), 0)
    while answer.going:
        answer.advance()
    assert answer.text == "1+1\nUser:" and answer.finished
    assert play.Answer("base", model, tokenizer, cfg, tinyr1.Problem({}, "", [1] * 1000), 0).cap == 24
    with pytest.raises(tasks.TaskError, match="too long"):
        play.Answer("base", model, tokenizer, cfg, tinyr1.Problem({}, "", [1] * 1024), 0)


def fake(name, tokenizer, text, cap=10**6):
    """An Answer of a model that says this."""
    answer = play.Answer.__new__(play.Answer)
    answer.name, answer.tokenizer, answer.problem = name, tokenizer, tinyr1.Problem({}, "", [])
    answer.ends, answer.stops, answer.cap = [tokenizer.eos_token_id], (), cap
    answer.tokens = iter([*tokenizer(text).input_ids, tokenizer.eos_token_id])
    answer.opened = ""
    answer.ids, answer.text, answer.length, answer.finished = [], "", 0, False
    return answer


# ---------------------------------------------------------------- the terminal


def test_rows_never_change_above_the_last():
    text = (
        "one two three\n\nfour " + "x" * 25 + " five six seven " * 5 + "重新检查 再 🙂" * 3 + "e\u0301" * 30
    )
    for width in (5, 8, 20):
        final = play.rows(text, width)
        assert all(sum(map(play.columns, row)) <= width for row in final)
        assert "".join(final).replace(" ", "") == text.replace(" ", "").replace("\n", "")
        for end in range(len(text)):
            assert play.rows(text[:end], width)[:-1] == final[: len(play.rows(text[:end], width)) - 1]


def screen(output: str) -> list[str]:
    """What a terminal shows: line feeds, clearing to the end of a line, moving up."""
    shown, row = [], 0
    for part in re.split(r"(\x1b\[[0-9]+A|\n)", output.replace("\x1b[K", "")):
        if part.startswith("\x1b"):
            row -= int(part[2:-1])
            assert row >= 0
        elif part == "\n":
            row += 1
        else:
            shown += [""] * (row + 1 - len(shown))
            shown[row] = part or shown[row]
    return shown


def test_two_columns_show_both_answers_whole(tiny, capsys, monkeypatch):
    tokenizer, task = AutoTokenizer.from_pretrained(tiny), type("task", (), {})
    monkeypatch.setattr(play.Answer, "verdict", lambda self, task: f"{self.length} tokens")
    texts = ["8-5=3, 3*3=9", "\n".join(f"{n}+{n}={2 * n}, want 16: no, so on we go" for n in range(30))]
    for left, right in (texts, texts[::-1], (texts[1], texts[1] + "\n\n")):
        play.side_by_side([fake("base", tokenizer, left), fake("trained", tokenizer, right)], task, 60)
        cells = [
            [cell.rstrip() for cell in row.partition(" │")[::2]] for row in screen(capsys.readouterr().out)
        ]
        for i, text in enumerate((left, right)):
            expected = [row.rstrip() for row in play.rows(text, 28)]
            assert [row[i].strip() for row in cells[1:]][: len(expected)] == [row.strip() for row in expected]
        assert cells[0] == ["[base]", " [trained]"] and "tokens" in "".join(cells[-2] + cells[-1])


def test_columns_stay_straight_beside_wide_letters(tiny, capsys, monkeypatch):
    tokenizer, task = AutoTokenizer.from_pretrained(tiny), type("task", (), {})
    monkeypatch.setattr(play.Answer, "verdict", lambda self, task: "right")
    answers = [fake(name, tokenizer, "") for name in ("base", "trained")]
    for answer, text in zip(answers, ("再试 e\u0301 🙂\n" * 3, "1+1")):
        answer.text, answer.finished = text, True
    play.side_by_side(answers, task, 60)
    left = [row.partition("│")[0] for row in screen(capsys.readouterr().out) if "│" in row]
    assert len(left) == 6 and {sum(map(play.columns, cell)) for cell in left} == {29}


def test_a_terminal_is_safe_from_what_a_model_writes(tiny):
    answer = fake("base", AutoTokenizer.from_pretrained(tiny), "\x1b]0;owned\x07\x1b[2J 1+1\tü\n")
    while answer.going:
        answer.advance()
    assert answer.shown == "·]0;owned··[2J 1+1  ü\n" and "\x1b" in answer.text


# ---------------------------------------------------------------- the command


def test_once(runs, capsys):
    assert run(runs["mini"], "--once", "3 8 5 = 16", "--seed", 1) == 0
    output = capsys.readouterr().out
    assert output.startswith("Make 16 from 3, 8, 5.\n\n[base]\n") and "\n[trained]\n" in output
    verdicts = re.findall(r"^✗ wrong, reward 0, \d+ tokens(?:, cut off)?$", output, re.M)
    assert len(verdicts) == 2 and output.endswith(verdicts[1] + "\n")
    assert run(runs["mini"], "--once", "3 8 5 = 16", "--seed", 1) == 0 and capsys.readouterr().out == output
    assert run(runs["mini"], "--once", "3 8") == 2
    assert "such as 3 8 5 = 16" in capsys.readouterr().err


def test_lines_from_a_pipe(runs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("23*47\n\nnonsense\n3\n"))
    assert run(runs["mini-multiply"], "--temperature", 0) == 0
    output = capsys.readouterr().out
    assert output.startswith("What is 23*47?\n") and output.count("[base]") == output.count("tokens") / 2 == 3
    assert "'nonsense' is no problem" in output


def test_an_unfinished_run_answers_from_its_checkpoint(runs, tmp_path, capsys):
    import shutil

    shutil.copytree(runs["mini"], tmp_path / "half", ignore=shutil.ignore_patterns("final", "summary.json"))
    assert run(tmp_path / "half", "--once", "1", "--seed", 3) == 0
    half = capsys.readouterr().out
    assert "half: still in training, at step 1" in half
    assert run(runs["mini"], "--once", "1", "--seed", 3) == 0
    assert half.endswith(capsys.readouterr().out)  # the checkpoint is that of the last step


def test_no_run_is_one_clear_line(tmp_path, capsys):
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert "is no run folder" in error and error.count("\n") == 1
