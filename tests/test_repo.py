"""What holds of the repository as a whole: direction of imports, limits of functions, what is tested."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import tinyr1
from runtime.presets import ABOUT, PRESETS

HERE = Path(__file__).resolve().parent.parent


def python_files():
    """The repository's; where this is no git repository, all that are here."""
    try:
        listed = subprocess.run(["git", "ls-files", "*.py"], cwd=HERE, capture_output=True, text=True)
        tracked = [HERE / name for name in listed.stdout.splitlines()]
    except OSError:
        tracked = []
    every = tracked or HERE.rglob("*.py")
    return [p for p in every if p.exists() and not {".venv", "runs"} & set(p.relative_to(HERE).parts)]


CODE = python_files()


def imports(path):
    """Top-level names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


OURS = {"tinyr1", "critic", "commands", "minibase", "runtime", "engine", "tasks", "plots"}
MAY_IMPORT = {  # what a folder or file may import of ours; commands, tests and minibase may import anything
    "tasks": {"tasks"},
    "plots": {"plots", "tasks"},
    "engine": {"engine"},
    "runtime": {"runtime", "engine", "tasks", "plots"},
    "critic.py": {"runtime", "engine", "tasks"},
    "tinyr1.py": {"critic", "runtime", "engine", "tasks"},
}


def test_imports_point_downwards():
    for path in CODE:
        top, names = path.relative_to(HERE).parts[0], imports(path)
        if top in MAY_IMPORT:
            assert names & OURS <= MAY_IMPORT[top], (path, names & OURS - MAY_IMPORT[top])
        if top in ("tasks", "plots"):
            assert not names & {"torch", "transformers"}, path


def test_the_top_level_has_two_python_files():
    assert sorted(path.name for path in CODE if path.parent == HERE) == ["critic.py", "tinyr1.py"]


def test_functions_fit_a_screen():
    """At most 60 lines, and `train`, which is the algorithm box, 45. Ruff limits the complexity."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and path.parent.name != "tests":
                length = node.end_lineno - node.lineno + 1
                assert length <= (45 if node.name == "train" else 60), (path.name, node.name, length)


def test_there_is_one_statement_in_a_line():
    for path in CODE:
        statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
        starts = Counter(node.lineno for node in statements)
        twice = [line for line, count in starts.items() if count > 1]
        assert not twice, (path.name, twice)


def test_what_ruff_does_not_format_is_a_table():
    """`# fmt: skip` belongs to a literal or a call of dict() with at least three entries."""
    for path in CODE:
        lines = path.read_text().splitlines()
        skipped = {n for n, line in enumerate(lines, 1) if line.rstrip().endswith("# fmt: skip")}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.stmt) and node.end_lineno in skipped:
                assert any(is_table(part) for part in ast.walk(node)), (path.name, node.lineno)


def is_table(node):
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict":
        return len(node.keywords) >= 3
    entries = getattr(node, "keys", getattr(node, "elts", []))
    return isinstance(node, (ast.Dict, ast.List, ast.Tuple, ast.Set)) and len(entries) >= 3


def test_links_lead_somewhere_and_nothing_is_left_to_fill_in():
    for page in (
        HERE / "README.md",
        HERE / "CONTRIBUTING.md",
        *(HERE / "docs").glob("*.md"),
        *(HERE / "plots" / "reference").glob("*.md"),
    ):
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)
        assert not re.search(r"@[A-Z]+@", text), page.name


def test_presets_and_help_agree(capsys):
    assert list(PRESETS) == list(ABOUT)
    assert tinyr1.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in PRESETS)
    for name in PRESETS:
        cfg, preset = tinyr1.parse([name])
        assert preset == cfg.name == name
    cfg, _ = tinyr1.parse(["mini", "--seed", "1", "--steps", "7", "--task_args", "reward=simplerl"])
    assert cfg.name == "mini-task_args_reward=simplerl-steps_7-seed_1" or cfg.name.startswith("mini-")
    assert "reward=simplerl" in cfg.task_args and "wording=short" in cfg.task_args and cfg.kl == 0
    assert tinyr1.parse(["--algo", "drgrpo"])[0].adv == "centred"
    assert tinyr1.parse(["--algo", "drgrpo", "--adv", "zscore"])[0].adv == "zscore"
    assert tinyr1.parse(["mini", "--algo", "drgrpo"])[0].loss_norm == "constant"


CLOCKS = r"\b(perf_counter|monotonic|time\.time|fastest)\("


def test_no_test_of_the_default_run_asserts_seconds():
    """It would fail on a busy machine: such tests are marked `timing`. A `while` with a deadline may stay."""
    for path in (HERE / "tests").glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and re.search(CLOCKS, source := ast.unparse(node)):
                assert "mark.timing" in source or "while " in source, (path.name, node.name)


STUB = """#!/bin/sh
# instead of python: it has every package, and says what it was asked to run
if [ "$1" = -m ]; then echo "$@"; fi
"""


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_the_test_command_checks_the_repositorys_files(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("run.sh", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(HERE / name, folder)
    (folder / "tracked.py").touch()
    (folder / "my_task.py").write_text("x=1")

    def asked():
        environment = os.environ | {"PYTHON": str(stub), "GIT_CEILING_DIRECTORIES": str(tmp_path)}
        command = ["bash", "run.sh", "test", "-k", "x"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert asked() == ["-m ruff check .", "-m ruff format --check .", "-m mypy", "-m pytest -q -k x"]
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "tracked.py", "run.sh"], cwd=folder, check=True)
    assert asked()[:2] == ["-m ruff check tracked.py", "-m ruff format --check tracked.py"]
    (folder / "tracked.py").unlink()
    assert asked()[0] == "-m ruff check ."


def test_timing_is_left_out_by_default(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import pytest\n@pytest.mark.timing\ndef test_slow(): pass\ndef test_plain(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-n", "0"]
    command += ["-c", HERE / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "test_plain" in done.stdout and "test_slow" not in done.stdout, done.stdout
    assert "test_slow" in subprocess.run([*command, "-m", "timing"], capture_output=True, text=True).stdout
