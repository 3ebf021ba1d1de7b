"""The protocol of tasks: loading, options, templates, the answer's extraction, the held-out split, rows."""

import ast
import json
from pathlib import Path

import pytest
from timing import fastest

import tasks
from tasks import (
    TEMPLATES,
    BadRow,
    TaskError,
    competition_math,
    extract_answer,
    find_answer,
    held_out,
    json_lines,
    load,
    read_options,
    read_rows,
    render,
)

OWN_TASK = """
from tasks import extract_answer, held_out

def examples(split, **options):
    for n in range(100):
        if held_out("parity", n) == (split == "test"):
            yield {"n": n}

def question(example):
    return f"Is {example['n']} odd or even?"

def reward(completion, example):
    correct = extract_answer(completion) == ("odd" if example["n"] % 2 else "even")
    return {"reward": float(correct), "correct": correct}
"""


def test_a_task_of_ones_own_loads_from_its_file(tmp_path):
    path = tmp_path / "parity.py"
    path.write_text(OWN_TASK)
    task = load(str(path))
    train, test = list(task.examples("train")), list(task.examples("test"))
    assert len(train) + len(test) == 100 and test and not [e for e in test if e in train]
    assert task.question({"n": 3}) == "Is 3 odd or even?"
    assert task.reward("<answer>odd</answer>", {"n": 3}) == {"reward": 1.0, "correct": True}


def test_load_by_name_and_by_path_agree():
    assert all(isinstance(load(name), tasks.Task) for name in tasks.available())
    assert load("countdown").OPTIONS == load(str(Path(tasks.__file__).parent / "countdown.py")).OPTIONS
    assert "countdown" in tasks.available() and not [name for name in tasks.available() if name[0] == "_"]


@pytest.mark.parametrize(
    "source, expected",
    [
        (None, "No task file"),
        ("def examples(split): ...\ndef reward(c, e): ...", r"lacks question\(\)"),
        ("def examples(:", "fails on import: SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit(3)", "fails on import: SystemExit"),
    ],
)
def test_a_task_file_that_cannot_be_used_says_why(tmp_path, source, expected):
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(TaskError, match=expected):
        load(str(path))


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(TaskError, match=r"Unknown task 'countdwn'\. Did you mean 'countdown'\?"):
        load("countdwn")


def test_tasks_import_neither_torch_nor_the_trainer():
    for path in Path(tasks.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"torch", "transformers", "tinyr1", "rollout", "minibase", "plots"}, path.name


def test_options_are_converted_to_their_defaults_types():
    defaults = {"high": 10, "share": 0.5, "data": ""}
    assert read_options({"high": "99"}, defaults) == {"high": 99, "share": 0.5, "data": ""}
    assert read_options({"share": "1", "data": None}, defaults) == {"high": 10, "share": 1.0, "data": ""}
    with pytest.raises(
        TaskError, match=r"Unknown task option 'hihg'\. Did you mean 'high'\? Known: high, share"
    ):
        read_options({"hihg": 1}, defaults)
    with pytest.raises(TaskError, match="high='ten': expected int, such as high=10"):
        read_options({"high": "ten"}, defaults)


@pytest.mark.parametrize("name", tasks.available())
@pytest.mark.parametrize(
    "options, expected",
    [
        ({"split": "dev"}, "Unknown split 'dev'"),
        ({"limit": -1}, "limit=-1: expected a number of examples"),
        ({"reward": "simple"}, "Unknown reward 'simple'. Did you mean 'simplerl'"),
        ({"wording": "long"}, "Unknown wording 'long'"),
    ],
)
def test_options_that_every_task_has_are_checked_at_once(name, options, expected):
    options = {"split": "train"} | options
    with pytest.raises(TaskError, match=expected):
        load(name).examples(**options)


# ---------------------------------------------------------------- templates


def test_templates_word_by_word():
    opening = (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with "
        "the answer."
    )
    assert render("r1", "Why?") == opening + (
        " The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
        "User: Why?. Assistant:"
    )
    assert render("r1", "Add 1.").endswith("User: Add 1. Assistant:")
    assert render("tinyzero", "Why?") == (
        opening + "\nUser: Why?\nAssistant: Let me solve this step by step.\n<think>"
    )
    assert render("qwen-math", "$\\frac{1}{2}$?") == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}."
        "<|im_end|>\n<|im_start|>user\n$\\frac{1}{2}$?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render("abel", "Why?") == "Question:\nWhy?\nAnswer:\nLet's think step by step.\n"
    assert render("none", "Why?") == "Why?\n"
    assert render("Q: {question}\nA:", "{x}") == "Q: {x}\nA:"
    assert set(TEMPLATES) == {"r1", "tinyzero", "chat", "qwen-math", "abel", "none"}


def test_chat_is_the_tokenizers_own_template():
    class Tokenizer:
        chat_template = "a template"

        def apply_chat_template(self, messages, tokenize, add_generation_prompt):
            assert not tokenize and add_generation_prompt
            return "".join(f"[{m['role']}] {m['content']}" for m in messages) + " [assistant]"

    assert render("chat", "Why?", Tokenizer()) == "[user] Why? [assistant]"
    Tokenizer.chat_template = None
    for tokenizer in (Tokenizer(), None):
        with pytest.raises(TaskError, match="this tokenizer has none.*Choose another: r1, tinyzero"):
            render("chat", "Why?", tokenizer)
    with pytest.raises(TaskError, match=r"Unknown template 'qwenmath'\. Did you mean 'qwen-math'\?"):
        render("qwenmath", "Why?")


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("<think>a</think><answer> 1 </answer>", "1"),
        ("a</think> <answer>1</answer>", "1"),
        ("<answer>1</answer>", "1"),
        ("<answer>1</answer> or <answer>2</answer> then", "2"),
        ("<answer>1</think><answer>2</answer>", "2"),
        ("<answer>1</answer></think>2", None),
        ("<think><answer>1</answer>", None),
        ("<answer>1</answer><think>more", "1"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer>1</answer></answer>", "1"),
        ("<answer><answer>1</answer></answer>", "<answer>1"),
        ("<answer>1</answer><answer>2<answer>3</answer>", "2<answer>3"),
        ("</answer><answer>", None),
        ("<answer></answer>", ""),
        ("1", None),
        ("", None),
    ],
)
def test_extract_answer(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("\\boxed{1} <answer>2</answer>", "2"),
        ("<answer></answer> \\boxed{1}", ""),
        ("so \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("<think>\\boxed{1}</think> 1", None),
        ("<think>\\boxed{1}", None),
        ("1", None),
    ],
)
def test_an_answer_stands_in_tags_or_in_a_box(completion, answer):
    assert find_answer(completion) == answer


@pytest.mark.timing
def test_extract_answer_is_fast_on_any_length():
    for text in ("<answer>", "</answer>", "<answer>1</answer>", "<think>", "</think", "<"):
        text = text * (1_000_000 // len(text))
        assert fastest(lambda text=text: extract_answer(text))[1] < 0.005, text[:20]


# ---------------------------------------------------------------- the held-out split and rows


def test_held_out_is_stable_and_a_tenth():
    assert sum(held_out("countdown", [1, 2, n], n) for n in range(10_000)) == pytest.approx(1_000, abs=100)
    # Pinned: another split would put problems into RL that a base model has been kept from, or the reverse.
    assert [n for n in range(60) if held_out("golden", n)] == [30, 34, 37, 50, 52]
    assert [held_out("k", (1, 2), n) for n in range(50)] == [held_out("k", [1, 2], n) for n in range(50)]


def test_rows_of_jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "b": 2, "c": 3}\n\n{"a": 4, "b": 5}\n', encoding="utf-8-sig")
    assert read_rows(path, ["a"], ["c"]) == [{"a": 1, "c": 3}, {"a": 4}]


def test_rows_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"nums": [[1, 2], [3]], "target": [3, 3], "more": ["x", "y"]}), path)
    assert read_rows(path, ["nums", "target"]) == [{"nums": [1, 2], "target": 3}, {"nums": [3], "target": 3}]
    with pytest.raises(TaskError, match="lacks answer: found the fields nums, target, more, expected answer"):
        read_rows(path, ["answer"])
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(TaskError, match="not a readable parquet file"):
        read_rows(path, ["nums"])


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "No data file"),
        (b"", "holds no rows"),
        (b'{"a": 1}\n\n{"a": \n', "Row 3 of .* is not JSON .* 1 of 2 rows cannot be used: correct or delete"),
        (b"[1, 2]\n", "Row 1 of .* holds a int: expected one object per row"),
        (b'[{"a": 1}]\n[{"a": 2}]\n', "begins like a JSON array and is not one .* one object per line"),
        (b"[" * 100_000, "begins like a JSON array and is not one"),
        (b'{"b": 1}\n', "Row 1 of .* lacks a: found the fields b, expected a"),
        (b'{"a": 1}\n{"a": null}\n', "Row 2 of .* lacks a"),
        (b"\xff\xfe\x00", "cannot be read: it is not UTF-8 .byte 1 is 0xff.. Convert it, e.g. iconv"),
        ('{"a": "café"}'.encode("latin-1"), "it is not UTF-8 .byte 11 is 0xe9"),
    ],
)
def test_a_data_file_that_cannot_be_used_says_why(tmp_path, content, expected):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TaskError, match=expected) as error:
        read_rows(path, ["a"])
    assert "\n" not in str(error.value)


def test_rows_of_a_json_array(tmp_path):
    path = tmp_path / "rows.json"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text(json.dumps([{"a": "\u2028", "b": 2}, {"a": 4}], indent=1), encoding=encoding)
        assert read_rows(path, ["a"]) == [{"a": "\u2028"}, {"a": 4}]


def test_some_bad_rows_of_a_large_file_are_named_and_left_out(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"

    def write(good, bad):
        path.write_text('{"a": 1}\n' * good + "".join(bad))

    write(97, ['{"a": \n', "\n", '{"b": 1}\n', "[]\n", '{"a": 2}\n', "7"])
    # A task reads its file twice, and one warning is enough.
    for _ in range(2):
        assert read_rows(path, ["a"]) == [{"a": 1}] * 97 + [{"a": 2}]
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "4 of 102 rows are left out: Row 98 of" in warning
    assert "Row 100 of" in warning and "lacks a: found the fields b" in warning
    assert "Row 101 of" in warning and "Row 103 of" not in warning and "and 1 more" in warning
    write(98, ["7"])
    with pytest.raises(TaskError, match="Row 99 of .* 1 of 99 rows cannot be used"):
        read_rows(path, ["a"])
    write(60, ["7\n"] * 60)
    assert len(read_rows(path, ["a"])) == 60
    write(60, ["7\n"] * 61)
    with pytest.raises(TaskError, match="Row 61 of .* 61 of 121 rows cannot be used"):
        read_rows(path, ["a"])


def test_a_task_may_convert_and_refuse_rows(tmp_path):
    def convert(row):
        if row["a"] < 0:
            raise BadRow("is negative")
        return row["a"], row.get("c")

    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "b": 2, "c": 3}\n{"a": 4}\n')
    assert read_rows(path, ["a"], ["c"], convert=convert) == [(1, 3), (4, None)]
    path.write_text('{"a": 1}\n{"a": -1}\n')
    with pytest.raises(TaskError, match="Row 2 of .* is negative. 1 of 2 rows cannot be used"):
        read_rows(path, ["a"], convert=convert)


def test_the_real_rows_of_math(tmp_path, capsys, data_file):
    data = data_file("math_train.jsonl")
    rows = [json.loads(line) for _, line in json_lines(data.read_text(encoding="utf-8"))]
    found = competition_math._rows(str(data))
    assert len(rows) > 11_000
    assert [row["answer"] for row in found] == [row["answer"].strip() for row in rows]
    rows[0] = {"problem": "p", "solution": "so $x = \\boxed 3$."}
    rows[1] = {"problem": "p", "solution": "nothing"}
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(rows))
    assert [row["answer"] for row in competition_math._rows(array)[:2]] == ["3", found[2]["answer"]]
    assert f"1 of {len(rows)} rows are left out: Row 2 of" in capsys.readouterr().err


def test_only_a_line_feed_ends_a_line_of_jsonl():
    text = '{"a": "1\u2028\x85\x0c2"}\r\n\n \n{"a": 3}\n\n'
    assert [(number, json.loads(line, strict=False)["a"]) for number, line in json_lines(text)] == [
        (1, "1\u2028\x85\x0c2"), (4, 3),
    ]  # fmt: skip


def test_the_hub_out_of_reach_says_what_to_do(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(TaskError, match="no route to host.*hf download someone/something .*data=FILE"):
        read_rows("someone/something", ["a"])
    with pytest.raises(TaskError, match="neither a .jsonl, .json or .parquet file nor a hub"):
        read_rows("something", ["a"])


def test_rows_of_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"nums": [1, 2], "target": 3, "more": "x"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    assert read_rows("someone/something", ["nums", "target"]) == [{"nums": [1, 2], "target": 3}]


def test_the_command_shows_every_answer_of_the_fixture(capsys, monkeypatch):
    from commands.tasks import FIXTURES, main

    monkeypatch.setattr("sys.argv", ["tasks", "countdown", "wording=short", "-n", "2"])
    main()
    printed = capsys.readouterr().out
    known = json.loads((FIXTURES / "countdown_answers.json").read_text(encoding="utf-8"))
    assert all(case["why"] in printed for case in known) and "<think>" in printed
    monkeypatch.setattr("sys.argv", ["tasks", "countdown", "hgih=3"])
    with pytest.raises(TaskError, match="Did you mean 'high'"):
        main()
