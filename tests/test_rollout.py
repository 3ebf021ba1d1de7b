"""The rollout engine against Hugging Face `generate` and against the trainer's log-probabilities."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

import rollout
from decoder import FAST, Decoder, fast_path
from tinyr1 import token_logp

PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7], [11, 12]]
SIZE = dict(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=0,  # pad == eos, as Qwen's base tokenizers may have it
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
CONFIGS = {
    "qwen2": Qwen2Config(**SIZE, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZE, num_key_value_heads=1, head_dim=16),
    "llama": LlamaConfig(**SIZE, num_key_value_heads=4, attention_bias=True, rope_parameters=LLAMA3),
    "gpt_neox": GPTNeoXConfig(**SIZE),
    "deepseek_v3": DeepseekV3Config(
        **SIZE | dict(num_hidden_layers=3),
        num_key_value_heads=4,
        moe_intermediate_size=16,
        q_lora_rank=12,
        kv_lora_rank=12,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
    ),
}


def make(name):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for p in (
            model.parameters()
        ):  # away from the initial near-zero: greedy choices become distinct, biases count
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_hugging_face(name):
    model = make(name)
    out = rollout.generate(model, PROMPTS, 1, max_new_tokens=24, eos_ids=[0], temperature=0)
    assert fast_path(model) == (name in FAST)
    for prompt, completion in zip(PROMPTS, out.completions()):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=24,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        assert completion == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_logp_is_the_trainers(name):
    model = make(name)
    out = rollout.generate(model, PROMPTS, 3, max_new_tokens=20, eos_ids=[0, 1], temperature=0.7, seed=3)
    logp, _ = token_logp(model, out.ids, out.mask, temperature=0.7)
    assert torch.allclose(out.logp, logp, atol=2e-5)
    assert (out.logp[out.mask] < 0).all() and (out.logp[~out.mask] == 0).all()


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox", "deepseek_v3"])
def test_slots_do_not_change_samples(name):
    """No sample is lost or doubled, whatever the number of slots: a sample has a random stream of its own."""
    model = make(name)
    kw = dict(max_new_tokens=30, eos_ids=[0, 1, 2, 3], temperature=1.0, seed=5)
    whole = rollout.generate(model, PROMPTS, 5, **kw).completions()
    for slots in (1, 2, 3, 7):
        assert rollout.generate(model, PROMPTS, 5, slots=slots, **kw).completions() == whole
    assert len({tuple(c) for c in whole}) > 10  # samples of a group differ
    assert rollout.generate(model, PROMPTS, 5, **kw | {"seed": 6}).completions() != whole
    assert (
        rollout.generate(model, PROMPTS[:2], 5, **kw).completions() == whole[:10]
    )  # neighbours do not matter


def test_mask_counts_completions_and_their_eos():
    model = make("qwen2")
    out = rollout.generate(model, PROMPTS, 8, max_new_tokens=12, eos_ids=[0, 1, 2, 3], seed=1)
    assert (out.mask.sum(1) == out.length).all()
    for ids, done, n in zip(out.completions(), out.finished.tolist(), out.length.tolist()):
        assert len(ids) == n and done == (ids[-1] in (0, 1, 2, 3)) and not set(ids[:-1]) & {0, 1, 2, 3}
        assert done or n == 12
    assert out.finished.any() and not out.finished.all()


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20000, 4)
    keys = rollout.stream(0, torch.arange(20000), torch.zeros(20000, dtype=torch.long))
    u = rollout.uniform(keys, torch.zeros(20000, dtype=torch.long))
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.std() - 12**-0.5) < 0.005
    token, logp = rollout.sample(logits, u, 0.5, 1.0, 0)
    expected = torch.softmax(logits[0] / 0.5, -1)
    assert torch.allclose(torch.bincount(token, minlength=4) / 20000, expected, atol=0.012)
    assert torch.allclose(logp.exp(), expected[token])
    assert set(rollout.sample(logits, u, 1.0, 0.7, 0)[0].tolist()) == {0, 1}  # 0.64 alone is not 0.7
    assert set(rollout.sample(logits, u, 1.0, 1.0, 1)[0].tolist()) == {0}


def test_streams_are_independent_of_each_other():
    p, s = (x.flatten() for x in torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij"))
    keys = rollout.stream(7, p, s)
    assert len(keys.unique()) == 64 * 64
    zero = torch.zeros(1, dtype=torch.long)
    assert (
        rollout.uniform(rollout.stream(0, zero, zero), zero) > 0
    )  # the first sample of seed 0 is like any other
    u = torch.stack([rollout.uniform(keys, torch.full_like(keys, t)) for t in range(32)])  # (32,4096)
    corr = torch.corrcoef(u)
    assert (corr - torch.eye(32)).abs().max() < 0.08


def test_impossible_requests_are_refused():
    model = make("qwen2")
    with pytest.raises(ValueError, match="positions"):
        rollout.generate(model, [[1] * 100], 1, max_new_tokens=64)
    with pytest.raises(ValueError, match="prompt"):
        rollout.generate(model, [[]], 1, max_new_tokens=4)


def test_samples_that_end_at_their_first_token_leave_their_slots_at_once():
    model = make("qwen2")
    kw = dict(max_new_tokens=6, eos_ids=list(range(50)), seed=5)
    whole = rollout.generate(model, PROMPTS, 6, **kw).completions()
    assert sum(len(c) == 1 for c in whole) > 12
    for slots in (1, 4, 23):
        assert rollout.generate(model, PROMPTS, 6, slots=slots, **kw).completions() == whole


def test_every_prompt_is_prefilled_once(monkeypatch):
    model, seen, prefill = make("llama"), [], Decoder.prefill
    rollout.sampling_path(model)  # which tries a few samples once a model

    def counted(self, prompts):
        seen.extend(map(tuple, prompts))
        return prefill(self, prompts)

    monkeypatch.setattr(Decoder, "prefill", counted)
    rollout.generate(model, PROMPTS, 5, max_new_tokens=20, eos_ids=[0, 1], slots=3)
    assert seen == [tuple(p) for p in PROMPTS]


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox"])
def test_each_sample_has_its_own_cap(name):
    caps = [1, 9, 30, 2, 17, 5, 5, 12]
    out = rollout.generate(make(name), PROMPTS, 2, max_new_tokens=caps, slots=3)
    assert out.length.tolist() == caps and not out.finished.any()


@pytest.mark.parametrize("name", ["qwen3", "gpt_neox"])
@pytest.mark.parametrize("slots", [None, 2])
def test_stop_strings_end_a_sample_behind_the_token_that_completes_them(name, slots):
    model = make(name)
    spell = "".join(chr(97 + i % 5) for i in range(67))  # each token is one letter of five

    def decode(ids):
        return "".join(spell[i] for i in ids)

    kw = dict(max_new_tokens=40, eos_ids=[0], seed=2, slots=slots)
    free = rollout.generate(model, PROMPTS, 4, **kw)
    out = rollout.generate(model, PROMPTS, 4, stop=["ab", "ca"], decode=decode, **kw)
    for whole, cut, done in zip(free.completions(), out.completions(), out.finished.tolist()):
        text = decode(whole)
        ends = [text.find(s) + 2 for s in ("ab", "ca") if s in text]
        assert cut == whole[: min(ends, default=len(whole))]
        assert done == bool(ends or whole[-1] == 0)
    assert out.length.float().mean() < free.length.float().mean()


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox"])
def test_too_little_memory_halves_the_slots_and_loses_nothing(name, monkeypatch, capsys):
    model = make(name)
    kw = dict(max_new_tokens=20, eos_ids=[0, 1], seed=5)
    whole = rollout.generate(model, PROMPTS, 4, **kw).completions()
    forward, step = type(model).forward, Decoder.step

    def limited(self, *args, **inputs):
        if len(args[0] if args else inputs["input_ids"]) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return (step if isinstance(self, Decoder) else forward)(self, *args, **inputs)

    monkeypatch.setattr(Decoder, "step", limited)
    monkeypatch.setattr(type(model), "forward", limited)
    assert rollout.generate(model, PROMPTS, 4, **kw).completions() == whole
    assert "4 at a time" in capsys.readouterr().out
    monkeypatch.setattr(rollout, "slots_that_fit", lambda *_: 3)
    rollout._announced.clear()
    assert rollout.generate(model, PROMPTS, 4, **kw).completions() == whole
    assert "3 samples" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", FAST)
def test_graphs_change_nothing_on_a_gpu(name, monkeypatch):
    model = make(name).cuda()
    kw = dict(max_new_tokens=60, eos_ids=[0], seed=5)
    with_graphs = rollout.generate(model, PROMPTS, 8, **kw)
    monkeypatch.setattr(rollout, "Graphs", lambda step: step)
    without = rollout.generate(model, PROMPTS, 8, **kw)
    assert with_graphs.completions() == without.completions()
    logp, _ = token_logp(model, without.ids, without.mask, temperature=1.0)
    assert torch.allclose(with_graphs.logp, logp, atol=1e-3)
