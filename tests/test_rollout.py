"""The rollout engine against Hugging Face `generate` and against the trainer's log-probabilities."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

import rollout
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
    assert rollout.fast_path(model) == (name in rollout.FAST)
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


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox"])
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
