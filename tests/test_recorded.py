"""Twelve steps of every algorithm give the recorded metrics and weights, to the last bit.

A processor and a version of torch round in their own way, so a record holds on its own machine; elsewhere the
tests are skipped. A change that is meant to change them records anew: RECORD=1 bash run.sh test -k recorded
"""

import json
import os
import platform
from hashlib import sha256
from pathlib import Path

import pytest
import torch

import tinyr1

RECORDS = Path(__file__).parent / "fixtures" / "recorded_runs.json"
OPTIONS = (
    "--steps 12 --prompts 3 --group 4 --max_new_tokens 12 --overlong_buffer 4 --eval_problems 3 "
    "--eval_samples 2 --probe_every 6 --probe_problems 2 --save_every 5 --precision fp32 --lr 3e-3"
).split()
MORE = {  # so that every path of a step is taken
    "grpo": "--kl 0.05",
    "dapo": "--max_resamples 2",
    "rloo": "--entropy 0.01",
    "reinforce++": "--kl_target 0.05",
    "gspo": "--epochs 2",
    "cispo": "--minibatches 2",
    "ppo": "--minibatches 2 --gae_lambda 0.95 --critic_warmup 2",
    "prime": "--min_pass_rate 0 --max_pass_rate 1",
}
DIGITS = """
import itertools

def examples(split): return itertools.repeat({"n": 1}, 3 if split == "test" else 10**6)
def question(example): return "What is 2?"
def reward(completion, example):
    digits = sum(letter.isdigit() for letter in completion[:3])
    return {"reward": digits / 3, "correct": digits > 1, "said": float(digits)}
"""


def machine() -> str:
    """What decides how numbers are rounded."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        found = {name.strip(): value.strip() for name, value in fields.items()}
        cpu = " ".join(found.get(name, "") for name in ("vendor_id", "cpu family", "model"))
    return f"{cpu}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def digest_of(run: Path, rows) -> str:
    metrics = [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in rows(run / "metrics.jsonl")
    ]
    text = json.dumps(metrics, sort_keys=True).encode()
    return sha256(text + (run / "final" / "model.safetensors").read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("algo", tinyr1.ALGORITHMS)
def test_recorded_run(algo, tiny, tmp_path, rows):
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    known, record = records.get(machine(), {}), "RECORD" in os.environ
    if algo not in known and not record:
        pytest.skip(f"nothing is recorded for {machine()}")
    (tmp_path / "digits.py").write_text(DIGITS)
    argv = ["train", "--model", tiny, "--task", str(tmp_path / "digits.py"), "--algo", algo, *OPTIONS]
    assert tinyr1.main([*argv, *MORE.get(algo, "").split(), "--out", str(tmp_path), "--name", "run"]) == 0
    found = digest_of(tmp_path / "run", rows)
    if record:
        records.setdefault(machine(), {})[algo] = found
        RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    else:
        assert found == known[algo]
