"""The benchmark command: its comparisons do the same work, and its figures are what they say."""

import json

import pytest
import torch

import tinyr1
from commands import bench
from commands.bench import Bench, Work, decode_bytes, make_work


def test_the_command_writes_consistent_figures(tmp_path, capsys):
    file = tmp_path / "bench.json"
    argv = "bench --prompts 2 --group 2 --max_new_tokens 12 --repeats 1 --profile True --device cpu --json"
    assert tinyr1.main([*argv.split(), str(file), "--against", "hf,static,vllm", "--lengths", "skewed"]) == 0
    figures, out = json.loads(file.read_text()), capsys.readouterr().out
    assert "hf" in figures["engines"] and "static" in figures["engines"] and "tokens/s" in out
    tokens = {e["tokens"] for e in figures["engines"].values()}
    assert len(tokens) == 1  # each engine stopped every sample at its cap
    assert sum(figures["profile"].values()) == pytest.approx(1)
    assert figures["step"]["update"] > 0 and 0 < figures["sampling"]["share_of_memory_limit"]


def test_unknown_engines_and_shapes_are_refused(capsys):
    assert tinyr1.main(["bench", "--against", "tgi"]) == 2 and "hf, static" in capsys.readouterr().err
    assert tinyr1.main(["bench", "--random", "qwen9"]) == 2 and "qwen2.5-1.5b" in capsys.readouterr().err
    assert tinyr1.main(["bench", "--random", "25m", "--lengths", "eos"]) == 2


def test_skewed_lengths_are_mostly_short_with_some_at_the_cap():
    model = bench.random_model("25m", torch.device("cpu"))
    work = make_work(Bench(prompts=64, group=8, max_new_tokens=512, lengths="skewed"), model, None)
    caps = torch.tensor(work.caps)
    assert caps.min() >= 1 and caps.max() == 512 and (caps == 512).float().mean() < 0.05
    assert 50 < caps.float().median() < 80
    assert len(work.rows) == 512 and work.eos == []


def test_bytes_by_hand():
    """2 samples of 3 tokens after a prompt of 2: the second and third read 3 and 4 places each."""
    model = bench.random_model("25m", torch.device("cpu"))
    work = Work([[1, 2]], 2, [3, 3], [])
    place = 2 * 8 * 2 * 64 * 4  # keys and values, layers, heads, dim, bytes
    weights = sum(p.numel() for p in model.parameters()) * 4  # tied: the embedding is read as the head
    assert decode_bytes(model, torch.float32, work, [3, 3], 2) == 2 * weights + 2 * (3 + 4) * place
