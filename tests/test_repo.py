"""What holds of the repository as a whole: direction of imports, line budgets, README's example."""

import ast
import re
from pathlib import Path

import tasks
import tinyr1

HERE = Path(__file__).resolve().parent.parent
CODE = [p for p in HERE.rglob("*.py") if not {".venv", "runs"} & set(p.relative_to(HERE).parts)]


def imports(path):
    """Top-level names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_direction_of_imports():
    for path in CODE:
        top, names = path.relative_to(HERE).parts[0], imports(path)
        if top in ("tasks", "plots"):
            assert not names & {"torch", "transformers", "tinyr1", "rollout", "models", "minibase"}, path
        if top == "rollout.py":
            assert not names & {"tasks", "plots", "models", "runfolder", "tinyr1"}
        if top not in ("tests", "commands", "minibase.py"):
            assert "tinyr1" not in names, path


def test_line_budgets():
    budgets = {"tinyr1.py": 900, "critic.py": 200, "rollout.py": 470, "minibase.py": 450}
    budgets |= {"tasks/countdown.py": 270}
    for name, most in budgets.items():
        assert len((HERE / name).read_text().splitlines()) <= most, name


def test_functions_fit_a_screen():
    """About 60 lines; the training loop, which is read as a whole, has more."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and path.parent.name != "tests":
                length = node.end_lineno - node.lineno + 1
                assert length <= (120 if node.name == "train" else 75), (path.name, node.name, length)


def test_the_readmes_task_works(tmp_path):
    source = re.search(r'```python\n("""my_task.py.*?)```', (HERE / "README.md").read_text(), re.S)[1]
    path = tmp_path / "my_task.py"
    path.write_text(source)
    task = tasks.load(str(path))
    test = list(task.examples("test"))
    train = [e for e, _ in zip(task.examples("train"), range(2000))]
    assert len(test) == 200 and not {str(e) for e in test} & {str(e) for e in train}
    e = test[0]
    right = f"<think></think><answer>{max(e['a'], e['b'])}</answer>"
    assert task.reward(right, e)["correct"] and not task.reward("<answer>x</answer>", e)["correct"]
    assert "max(" in task.question(e)


def test_links_lead_somewhere_and_nothing_is_left_to_fill_in():
    for page in (HERE / "README.md", HERE / "CONTRIBUTING.md", *(HERE / "plots" / "reference").glob("*.md")):
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)
        assert not re.search(r"@[A-Z]+@", text), page.name


def test_presets_and_help_agree(capsys):
    assert set(tinyr1.PRESETS) == set(tinyr1.GPU_GB)
    assert tinyr1.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in tinyr1.PRESETS)
    for name in tinyr1.PRESETS:
        cfg, preset = tinyr1.parse("train", [name])
        assert preset == cfg.name == name
    cfg, _ = tinyr1.parse("train", ["mini", "--seed", "1", "--steps", "7", "--task_args", "reward=simplerl"])
    assert cfg.name == "mini-task_args_reward=simplerl-steps_7-seed_1" or cfg.name.startswith("mini-")
    assert "reward=simplerl" in cfg.task_args and "wording=short" in cfg.task_args and cfg.kl == 0
    assert tinyr1.parse("train", ["--algo", "drgrpo"])[0].adv == "centred"
    assert tinyr1.parse("train", ["--algo", "drgrpo", "--adv", "zscore"])[0].adv == "zscore"
    assert tinyr1.parse("train", ["mini", "--algo", "drgrpo"])[0].weight == "constant"
