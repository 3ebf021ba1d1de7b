import os
from pathlib import Path

# xdist's workers are one process per core, so no process may take more than one
os.environ["OMP_NUM_THREADS"] = "1"
import pytest
import torch

from minibase import make as minibase
from runtime import runfolder
from tasks import read_jsonl


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random model a tenth of the miniature's size, with the miniature's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tokenizer = minibase.make_tokenizer()
    shape = minibase.Shape(hidden=32, layers=1, heads=1, kv_heads=1, inner=64)
    minibase.make_model(tokenizer, shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """No figures: they are drawn in processes of their own, which take longer than a small run."""
    monkeypatch.setattr(runfolder.Pictures, "refresh", lambda self: None)
    monkeypatch.setattr(runfolder.Pictures, "finish", lambda self: f"Report: {self.folder}/report.html")


BANDIT = '''
"""Say a digit: even ones win."""
import itertools

def examples(split, **options):
    return itertools.repeat({"n": 1}) if split == "train" else iter([{"n": 1}, {"n": 2}])

def question(example):
    return "What is 2?"

def reward(completion, example):
    right = completion[:1] in list("02468")
    return {"reward": float(right), "correct": right, "said_digit": float(completion[:1].isdigit())}
'''


@pytest.fixture
def bandit(tmp_path):
    path = tmp_path / "bandit.py"
    path.write_text(BANDIT)
    return str(path)


@pytest.fixture
def data_file():
    """Function of a file's name: its path in the folder TINYR1_DATA, which holds data that is not published.

    It skips the test where the variable is not set or the folder has no such file.
    """

    def find(name: str) -> Path:
        folder = os.environ.get("TINYR1_DATA")
        if not folder:
            pytest.skip(f"set TINYR1_DATA to a folder that holds {name}")
        path = Path(folder) / name
        if not path.is_file():
            pytest.skip(f"the folder TINYR1_DATA={folder} holds no {name}")
        return path

    return find


@pytest.fixture
def rows():
    """Reader of a JSONL file."""
    return read_jsonl
