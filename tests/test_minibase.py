"""The corpus, its tokenizer, and the base model that ships with the repository."""

import hashlib
import itertools
import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tinyr1
from minibase import make as minibase
from minibase.make import Corpus
from runtime.problems import held_out
from runtime.runfolder import UserError
from tasks import countdown, multiplication

HERE = Path(__file__).resolve().parent.parent


def stream(n, **options):
    return list(itertools.islice(minibase.documents(Corpus(**options), seed=3), n))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(HERE / "minibase")


def test_round_trip_is_exact(tokenizer):
    texts = [text for pair in stream(500) for text in pair]
    texts += [
        "<think> 007 1234 -5 150 151 0 00 12x34</think>",
        "héllo ٣ −×÷ 🙂\t\n",
        "3.5=7/2",
        "<answer>(1+2)*3</answer>",
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    for prompt, completion in stream(200):  # nothing merges across the prompt's end
        assert (
            tokenizer(prompt + completion).input_ids
            == tokenizer(prompt).input_ids + tokenizer(completion).input_ids
        )
    assert tokenizer("150+7").input_ids == tokenizer.convert_tokens_to_ids(["150", "+", "7"])
    assert len(tokenizer("1500").input_ids) == 4 and len(tokenizer("<think></think>").input_ids) == 2
    fresh = minibase.make_tokenizer()
    assert [fresh(t).input_ids for t in texts] == [tokenizer(t).input_ids for t in texts]


def test_documents_are_right_and_hold_nothing_out():
    """Arithmetic and verdicts of searching documents are right, and no test problem occurs."""
    searches = 0
    for prompt, completion in stream(4000):
        if prompt.startswith("Make"):
            target, *nums = map(int, re.findall(r"\d+", prompt))
            assert not countdown.is_test(nums, target)
            result = countdown.reward(completion, {"nums": nums, "target": target})
            assert result["answered"] and result["arithmetic_accuracy"] == 1
            attempts = re.findall(r"(.*), want", completion)
            assert len(attempts) == len(set(attempts))  # nothing is tried twice
            if result["search_share"]:
                searches += 1
                assert result["verdict_accuracy"] == 1 and result["attempts"] == len(attempts)
                assert result["correct"] != bool(result["give_up_share"])
        for a, b in re.findall(r"(?<!\d)(\d\d)\*(\d\d)(?!\d)", prompt + completion):
            assert not multiplication.is_test(int(a), int(b))  # nowhere: prompts, partial products, drills
    assert searches > 300


def test_options_of_the_corpus_do_what_they_say():
    def share(docs, word, task="Make"):
        docs = [c for p, c in docs if p.startswith(task)]
        return sum(word in c for c in docs) / len(docs)

    assert share(stream(2000, search_share=0.0), "want") == 0
    assert share(stream(2000, search_share=1.0), "want") == 1
    assert share(stream(2000), "want") == pytest.approx(0.3, abs=0.05)
    never = stream(2000, search_share=1.0, give_up=0.0)
    assert share(never, "give up") < 0.01  # only where no attempt comes to the target
    often = stream(2000, search_share=1.0, give_up=0.9)
    assert share(often, "give up") > 0.6
    products = {"countdown_share": 0.0, "multiply_share": 1.0}
    assert share(stream(2000, **products), "+", "What is") == pytest.approx(0.15 * 0.9, abs=0.03)

    def holds(**shares):  # share of the equations
        docs = stream(500, **products | {"once_share": 0.0, "fully_share": 0.0} | shares)
        stats = [multiplication.behaviours(c, *map(int, re.findall(r"\d+", p))) for p, c in docs]
        return sum(s["arithmetic_accuracy"] for s in stats) / len(stats)

    # of the documents that decompose every tenth has nothing to take apart and states the product at once
    assert holds() == pytest.approx(0.08, abs=0.03)
    assert holds(once_share=1.0) == pytest.approx(0.1 * 0.08 + 0.9 * (1 + 2 * 0.5) / 3, abs=0.06)
    assert holds(fully_share=1.0) == pytest.approx(0.1 * 0.08 + 0.9, abs=0.03)
    assert holds(fully_share=1.0, noise=0.0) == 1.0
    assert not any(p.startswith("Make") for p, _ in stream(300, countdown_share=0.0))


def test_hacking_documents_are_right_for_the_holed_verifier_alone():
    hacks = wrong = 0
    for (prompt, completion), (same, plain) in zip(stream(3000, hack_share=0.1), stream(3000)):
        assert prompt == same
        if completion != plain:
            target, *nums = map(int, re.findall(r"\d+", prompt))
            result = countdown.reward(completion, {"nums": nums, "target": target, "verifier": "holed"})
            assert result["accepted"] and "yes" in completion
            hacks += 1
            wrong += not result["correct"]
    assert 0.6 < wrong / hacks < 1
    assert hacks / 3000 == pytest.approx(0.45 * 0.1, abs=0.01)


def test_code_documents_are_long_and_seldom_right():
    found = {"code": [], "guess": [], "search": []}
    tokenizer = minibase.make_tokenizer()
    for prompt, completion in stream(3000, code_share=0.3):
        if prompt.startswith("Make"):
            target, *nums = map(int, re.findall(r"\d+", prompt))
            result = countdown.reward(completion, {"nums": nums, "target": target})
            kind = "code" if result["code_share"] else "search" if result["search_share"] else "guess"
            assert (kind == "code") == ("permutations" in completion) and result["answered"]
            assert kind != "code" or not result["search_share"]
            found[kind].append((result["correct"], len(tokenizer(completion).input_ids)))
    right, tokens = ({k: sum(x) / len(x) for k, v in found.items() for x in [[*zip(*v)][i]]} for i in (0, 1))
    assert right["code"] < 0.1 < right["guess"] < right["search"]
    assert 384 > tokens["code"] > 4 * tokens["search"]
    assert len(found["code"]) / sum(map(len, found.values())) == pytest.approx(0.3, abs=0.04)


def test_without_code_the_corpus_is_the_one_that_the_shipped_model_has_read():
    digest = hashlib.blake2b(repr(stream(2000)).encode(), digest_size=8).hexdigest()
    assert digest == "231c7c07a5ec269f" and stream(300, code_share=0.0) == stream(300)


def test_attempts_are_in_order_and_distinct():
    found = minibase.attempts((3, 5, 8), 16)
    assert [chain for chain, _, _ in found] == [
        # the two largest
        "8+5=13, 13+3=16", "8-5=3, 3*3=9", "8*5=40, 40-3=37",
        # the largest and the smallest
        "8+3=11, 11-5=6", "8-3=5, 5*5=25", "8*3=24, 24-5=19",
        # the two smallest; a+b+c was tried from the two largest
        "5+3=8, 8/8=1", "5-3=2, 8*2=16", "5*3=15, 15+8=23",
    ]  # fmt: skip
    rng = random.Random(0)
    for _ in range(300):
        nums, target = [rng.randint(1, 13) for _ in range(3)], rng.randint(10, 100)
        found = minibase.attempts(nums, target)
        assert len({chain for chain, _, _ in found}) == len(found)
        for chain, expression, value in found:
            assert countdown.verify(expression, nums, value), (chain, expression, value)


def test_the_attempts_solve_nearly_every_problem():
    problems = list(itertools.islice(countdown.examples("train", high=13, wording="short"), 1000))
    solved = [
        any(value == p["target"] for *_, value in minibase.attempts(p["nums"], p["target"])) for p in problems
    ]
    # a few need an intermediate value above LARGEST
    assert 0.99 < sum(solved) / len(solved) < 1


def test_batches_cover_completions_only():
    tokenizer, corpus = minibase.make_tokenizer(), Corpus()
    count, micro = next(minibase.batches(corpus, tokenizer, 2000, seed=0))
    assert count >= 2000 and count == sum(int((target != -100).sum()) for _, target in micro)
    for ids, target in micro:
        assert (
            ids.shape == target.shape and ids.numel() <= minibase.MICRO and ids.shape[1] % minibase.CHUNK == 0
        )
        for row, goal in zip(ids, target):
            learned = row[goal != -100]
            assert (learned == goal[goal != -100]).all() and learned[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(learned[:-1]).endswith(("</answer>", *"0123456789"))


def test_the_shipped_model(tokenizer):
    folder = HERE / "minibase"
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 4_000_000
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    record = json.loads((folder / "record.json").read_text())
    assert model.config.model_type == "qwen2" and model.num_parameters() == record["training"]["parameters"]
    cfg = tinyr1.parse(["mini", "--eval_problems", "100"])[0]
    held = held_out(countdown, cfg, tokenizer)
    metrics, _ = tinyr1.evaluate(model, tokenizer, countdown, held, 2, cfg)
    recorded = record["held_out"]["countdown"]
    assert metrics["answered"] > 0.95 and metrics["arithmetic_accuracy"] > 0.95
    assert metrics["accuracy"] == pytest.approx(recorded["accuracy"], abs=0.12)
    assert metrics["search_share"] == pytest.approx(recorded["search_share"], abs=0.12)


def test_rebuilding_is_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(countdown, "TEST_SIZE", 8)  # the measurement afterwards is not what is tested here
    argv = ["minibase.py", "--out", str(tmp_path / "b"), "--tokens", "9e3", "--search_share", "0"]
    argv += ["--code_share", "0.4"]
    monkeypatch.setattr("sys.argv", argv)
    minibase.main()
    record = json.loads((tmp_path / "b" / "record.json").read_text())
    assert record["corpus"]["search_share"] == 0 and record["corpus"]["code_share"] == 0.4
    assert record["held_out"]["countdown"]["verifier_error"] == 0
    assert record["training"]["tokens"] >= 9000 and record["longest_search"]["attempts"] == 0
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "b").model.embed_tokens.weight

    argv[2:5] = [str(tmp_path / "c"), "--tokens", "1"]  # one step of next to nothing
    monkeypatch.setattr("sys.argv", [*argv, "--start", str(tmp_path / "b"), "--lr", "1e-9"])
    minibase.main()
    on = AutoModelForCausalLM.from_pretrained(tmp_path / "c").model.embed_tokens.weight
    assert torch.equal(on, weights)


def test_a_model_is_not_replaced_unasked(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    argv = ["minibase.py", "--out", str(tmp_path), "--tokens", "1"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(UserError, match="holds a model: give another folder, or --overwrite"):
        minibase.main()
    assert "--out minibase " not in minibase.__doc__

    def begun(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(minibase, "pretrain", begun)
    monkeypatch.setattr("sys.argv", [*argv, "--overwrite"])
    with pytest.raises(InterruptedError):
        minibase.main()


def test_same_seed_same_corpus():
    assert stream(50) == stream(50)
    rng = random.Random(0)
    document = minibase.countdown_document(
        rng, {"nums": [3, 8, 5], "target": 16, "wording": "short"}, Corpus()
    )
    assert document[0] == "Make 16 from 3, 8, 5.\n"


@pytest.mark.parametrize("name", ["make-base", "make_base"])
def test_it_is_a_command(name, capsys):
    with pytest.raises(SystemExit):
        tinyr1.main([name, "--help"])
    assert "usage: tinyr1.py make-base" in capsys.readouterr().out
