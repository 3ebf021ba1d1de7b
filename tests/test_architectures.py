"""Sampler and trainer against the model's own forward pass, over tiny random models of many architectures."""

import copy
import math

import pytest
import torch
from samples import Sgd, make_samples
from torch.nn.utils import parametrize
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, FalconConfig, Phi3Config

import critic
import tinyr1
from commands import play
from engine import decoder, policy, rollout
from runtime import models
from runtime.runfolder import UserError
from tinyr1 import Policy

PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7], [11, 12]]
EDGES = dict(vocab_size=67, bos_token_id=1, eos_token_id=0, pad_token_id=0)
SIZE = EDGES | dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
)
MAMBA = dict(
    mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_d_conv=4, mamba_expand=2,
    mamba_chunk_size=8,
)  # fmt: skip
DELTA = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    linear_conv_kernel_dim=4, layer_types=["linear_attention", "full_attention"],
)  # fmt: skip
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
JITTER = dict(router_jitter_noise=0.3, input_jitter_noise=0.3)
MLA = dict(
    q_lora_rank=12, kv_lora_rank=12, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    num_key_value_heads=4,
)  # fmt: skip
LONGROPE = dict(
    rope_type="longrope", rope_theta=100.0, short_factor=[1.0] * 4, long_factor=[3.0] * 4,
    original_max_position_embeddings=64,
)  # fmt: skip

# name -> (path that samples it, settings of its configuration)
ARCHITECTURES = {
    "qwen2": ("fast", SIZE),
    "llama": ("fast", SIZE),
    "qwen3": ("fast", SIZE),
    "mistral": ("padded", SIZE | dict(sliding_window=4)),
    "mixtral": ("padded", SIZE | EXPERTS | JITTER),
    "phimoe": ("padded", SIZE | EXPERTS | JITTER),
    "deepseek_v3": ("padded", SIZE | MLA | dict(
        moe_intermediate_size=16, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2,
        n_shared_experts=1, first_k_dense_replace=1,
    )),
    "phi": ("padded", SIZE | dict(partial_rotary_factor=0.5, resid_pdrop=0.5)),
    "stablelm": ("padded", SIZE | dict(partial_rotary_factor=0.25)),
    "gpt_neox": ("padded", SIZE),
    "bloom": ("padded", EDGES | dict(hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.5)),
    "mpt": ("padded", EDGES | dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=128)),
    "gpt2": ("padded", EDGES | dict(n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.5)),
    "opt": ("padded", SIZE | dict(ffn_dim=48, word_embed_proj_dim=16, dropout=0.5)),
    "gemma2": ("padded", SIZE | dict(final_logit_softcapping=2.0)),
    "cohere": ("padded", SIZE | dict(logit_scale=0.25)),
    "granite": ("padded", SIZE | dict(logits_scaling=4.0)),
    "modernbert-decoder": ("padded", SIZE | dict(cls_token_id=1, sep_token_id=0)),
    "phi3": ("padded", SIZE | dict(rope_parameters=LONGROPE, original_max_position_embeddings=64)),
    "bart": ("equal", EDGES | dict(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, is_decoder=True,
        max_position_embeddings=128,
    )),
    "lfm2": ("padded", SIZE | dict(layer_types=["conv", "full_attention"])),
    "qwen3_next": ("padded", SIZE | DELTA | dict(
        moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4, num_experts_per_tok=2,
    )),
    "qwen3_5_text": ("padded", SIZE | DELTA),
    "jamba": ("padded", SIZE | dict(
        attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8, mamba_dt_rank=4,
    )),
    "bamba": ("padded", SIZE | MAMBA | dict(attn_layer_indices=[1])),
    "falcon_h1": ("padded", SIZE | MAMBA | dict(mamba_d_ssm=64)),
    "zamba2": ("padded", SIZE | dict(
        layers_block_type=["mamba", "hybrid"], num_key_value_heads=4, attention_head_dim=16,
        mamba_headdim=16, n_mamba_heads=4, mamba_ngroups=1, mamba_d_state=8, chunk_size=8, num_mem_blocks=1,
    )),
    "mamba": ("equal", EDGES | dict(hidden_size=32, num_hidden_layers=2, state_size=8)),
    "mamba2": ("padded", EDGES | dict(
        hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=8,
    )),
    "rwkv": ("whole", EDGES | dict(hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)),
}  # fmt: skip
# what a library of another version may do better or worse: any path is fine where the numbers are right
ANY_PATH = ("bart", "mamba", "mamba2", "zamba2", "rwkv")
NOT_PLAIN = ("gemma2", "cohere", "granite", "modernbert-decoder")


def make(name, **more):
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    known = CONFIG_MAPPING[name]()
    settings = ARCHITECTURES[name][1] | more
    config = CONFIG_MAPPING[name](**{k: v for k, v in settings.items() if hasattr(known, k)})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():  # away from the initial near-zero
            p.add_(torch.randn_like(p) * 0.1)
    return model


def rows_alone(model, roll, temperature):
    """(N,T) log-probabilities by model(ids), row by row, of the completions."""
    expected = torch.zeros_like(roll.logprobs)
    for i, (start, count) in enumerate(zip(roll.prompt_len.tolist(), roll.length.tolist())):
        ids = roll.input_ids[i : i + 1, : start + count]
        logp = torch.log_softmax(model(input_ids=ids).logits[0] / temperature, -1)
        for t in range(start, start + count):
            expected[i, t - 1] = logp[t - 1, ids[0, t]]
    return expected


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sampler_and_trainer_are_the_model(name):
    model = make(name)
    models.check_policy(model, name, Policy(model, 1.0, "fp32"))
    kw = dict(max_new_tokens=16, eos_ids=[0, 1], temperature=0.7, seed=3)
    roll = rollout.generate(model, PROMPTS, 3, **kw)
    expected = rows_alone(model, roll, 0.7)
    assert (roll.length < 16).any() and torch.allclose(roll.logprobs, expected, atol=5e-5)
    assert torch.allclose(Policy(model, 0.7, "fp32")(roll.input_ids, roll.mask)[0], expected, atol=5e-5)
    assert policy.has_plain_head(model) == (name not in NOT_PLAIN)
    assert name in ANY_PATH or rollout.sampling_path(model) == ARCHITECTURES[name][0]
    assert rollout.generate(model, PROMPTS, 3, slots=5, **kw).completions() == roll.completions()


@pytest.mark.parametrize("name", ["gpt2", "opt", "mixtral", "phimoe", "bloom"])
def test_an_update_has_no_dropout_and_no_jitter(name):
    model = make(name).train()
    roll = rollout.generate(model, PROMPTS, 2, max_new_tokens=8, seed=3)
    assert model.training  # generate leaves the mode as it was
    reward = torch.tensor([[0.0, 1.0]] * 4)
    cfg = tinyr1.Train(precision="fp32", group=2, max_new_tokens=8, kl=0.04)
    batch = tinyr1.make_batch(make_samples(cfg, roll, reward.flatten()), cfg, 0, cfg.kl)
    tinyr1.compute_advantages(batch, cfg)
    batch.ref_logprobs = roll.logprobs
    metrics = tinyr1.update(Sgd(Policy(model, 1.0, "fp32"), lr=0.0), batch, cfg)
    assert abs(metrics["rollout_kl"]) < 1e-5 and abs(metrics["kl"]) < 1e-9 and metrics["grad_norm"] > 0


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_head_that_is_more_than_a_projection_is_seen_whatever_the_weights(name):
    """Softcapping changes small logits by rounding only, until training makes them large."""
    model = make(name)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-3)
    assert not policy.has_plain_head(model)


def test_a_model_that_looks_ahead_is_refused_in_one_line():
    config = CONFIG_MAPPING["bert-generation"](
        **SIZE, is_decoder=False, use_cache=False, position_embedding_type="absolute"
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    with pytest.raises(UserError, match="cannot be trained.*nats") as refusal:
        models.check_policy(model, "some/bert", Policy(model, 1.0, "fp32"))
    assert "\n" not in str(refusal.value) and "some/bert" in str(refusal.value)


def test_a_trainer_that_differs_from_the_model_is_refused():
    model = make("qwen2")
    policy = Policy(model, 1.0, "fp32")

    def other(*arguments):
        logprobs, entropy = policy(*arguments)
        return logprobs * 1.1, entropy

    with pytest.raises(UserError, match="differ by [0-9.]+ nats"):
        models.check_policy(model, "x", other)


# ---------------------------------------------------------------- position encoding that switches


def test_rows_end_where_longrope_would_change_every_position():
    model = make("phi3").eval()
    assert isinstance(model.config, Phi3Config) and model.config.max_position_embeddings == 128
    assert policy.position_limit(model) == 64
    with pytest.raises(ValueError, match="knows only 64 positions"):
        rollout.generate(model, [[1] * 40], 1, max_new_tokens=25)
    rollout.generate(model, [[1] * 40], 1, max_new_tokens=24)


def test_other_encodings_use_all_positions():
    yarn = dict(rope_type="yarn", rope_theta=100.0, factor=2.0, original_max_position_embeddings=64)
    assert policy.position_limit(make("llama", rope_parameters=yarn).eval()) == 128
    assert policy.position_limit(make("mpt").eval()) == math.inf


# ---------------------------------------------------------------- layers that are not what they seem


class Shifted(torch.nn.Linear):
    """A linear layer that computes more than its weight says."""

    def forward(self, x):
        return super().forward(x) + x.mean(-1, keepdim=True)


class Wrapped(torch.nn.Module):
    """What an adapter's layer is like."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.low = torch.nn.Parameter(torch.randn(inner.weight.shape) * 0.1)

    def forward(self, x):
        return self.inner(x) + torch.nn.functional.linear(x, self.low)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def subclass(layer):
    layer.mlp.down_proj.__class__ = Shifted


def wrapper(layer):
    layer.self_attn.q_proj = Wrapped(layer.self_attn.q_proj)


def parametrization(layer):
    parametrize.register_parametrization(layer.mlp.up_proj, "weight", Doubled())


def hook_of_a_layer(layer):
    layer.register_forward_hook(lambda module, inputs, output: output * 1.5)


def hook_before_a_norm(layer):
    layer.input_layernorm.register_forward_pre_hook(lambda module, inputs: (inputs[0].abs(),))


def forward_of_a_norm(layer):
    layer.post_attention_layernorm.forward = lambda x: x * 3


CHANGES = [
    subclass,
    wrapper,
    parametrization,
    hook_of_a_layer,
    hook_before_a_norm,
    forward_of_a_norm,
]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_what_samples_is_what_is_trained(change):
    model = make("qwen2").eval()
    assert rollout.sampling_path(model) == "fast"
    before = rollout.generate(model, PROMPTS, 1, max_new_tokens=8).logprobs
    change(model.model.layers[0])
    assert not decoder.has_fast_path(model)
    roll = rollout.generate(model, PROMPTS, 1, max_new_tokens=8)
    assert torch.allclose(roll.logprobs, rows_alone(model, roll, 1.0), atol=5e-5)
    assert torch.allclose(roll.logprobs, Policy(model, 1.0, "fp32")(roll.input_ids, roll.mask)[0], atol=5e-5)
    assert not torch.allclose(roll.logprobs[:, :8], before[:, :8], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("part", ["embed_tokens", "lm_head", "norm"])
def test_the_ends_of_the_model_are_looked_at_too(part):
    model = make("llama", tie_word_embeddings=False).eval()
    module = model.lm_head if part == "lm_head" else getattr(model.model, part)
    module.register_forward_hook(lambda module, inputs, output: output * 1.5)
    roll = rollout.generate(model, PROMPTS, 1, max_new_tokens=8)
    assert rollout.sampling_path(model) == "padded"
    assert torch.allclose(roll.logprobs, rows_alone(model, roll, 1.0), atol=5e-5)
    assert torch.allclose(roll.logprobs, Policy(model, 1.0, "fp32")(roll.input_ids, roll.mask)[0], atol=5e-5)


@torch.no_grad()
@pytest.mark.parametrize("target", ["q_proj", "down_proj", "lm_head"])
def test_adapters_of_peft_are_sampled_from(target):
    peft = pytest.importorskip("peft")
    model = make("qwen2").eval()
    rollout.generate(model, PROMPTS, 1, max_new_tokens=8)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=[target], init_lora_weights=False))
    models.check_policy(model, "x", Policy(model, 1.0, "fp32"))
    roll = rollout.generate(model, PROMPTS, 1, max_new_tokens=8)
    assert rollout.sampling_path(model) == "padded"
    assert torch.allclose(roll.logprobs, rows_alone(model, roll, 1.0), atol=5e-5)


# ---------------------------------------------------------------- the other parts of training


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "jamba", "deepseek_v3"])
def test_layers_are_recomputed_in_evaluation_mode(name):
    plain = make(name).eval()
    thrifty = copy.deepcopy(plain)
    models.recompute_layers(thrifty)
    ids, mask, calls = torch.arange(1, 25).view(2, 12), torch.ones(2, 11, dtype=torch.bool), []
    inner = next(m for m in thrifty.modules() if "norm" in type(m).__name__.lower())
    inner.register_forward_pre_hook(lambda *_: calls.append(1))
    grads = []
    for model in (plain, thrifty, copy.deepcopy(thrifty)):
        Policy(model, 1.0, "fp32")(ids, mask)[0].sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*grads)) and grads[0]
    assert len(calls) >= 4  # two models, each forwards and again backwards


def test_recomputed_layers_still_sample_fast():
    model = make("qwen2").eval()
    models.recompute_layers(model)
    assert rollout.sampling_path(model) == "fast"


def test_a_model_without_layers_to_recompute_says_so():
    with pytest.raises(UserError, match="--gradient_checkpointing"):
        models.recompute_layers(torch.nn.Module.__new__(Bare).prepare())


class Bare(torch.nn.Module):
    def prepare(self):
        super().__init__()
        self.config = FalconConfig()
        return self


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt_neox", "mistral"])
def test_attention_in_fp32_beside_bf16_keeps_its_masks(name):
    """Left padding and sliding windows: an attention of one's own gets no mask unless one is registered."""
    model = make(name).eval()
    before = rollout.generate(model, PROMPTS, 2, max_new_tokens=12)
    models.pick_attention(model, "bf16")
    assert model.config._attn_implementation == "sdpa_fp32"
    after = rollout.generate(model, PROMPTS, 2, max_new_tokens=12)
    assert torch.equal(before.input_ids, after.input_ids) and torch.allclose(
        before.logprobs, after.logprobs, atol=1e-5
    )
    assert torch.allclose(
        after.logprobs, Policy(model, 1.0, "fp32")(after.input_ids, after.mask)[0], atol=5e-5
    )


@pytest.mark.parametrize("name", ["opt", "modernbert-decoder", "mamba"])
def test_a_critic_fits_every_base_model(name):
    model = make(name)
    own = critic.Critic(Policy(model, 1.0, "fp32"), tinyr1.Train(aux="critic"))
    assert own.head.in_features == critic.hidden_width(model) and not own.backbone.training


@pytest.mark.parametrize("name", ["gpt2", "mamba", "rwkv"])
def test_play_streams_what_generate_samples(name):
    model = make(name).eval()
    stream = play.sample_tokens(model, [5, 9, 3], tinyr1.Train(), 7)
    expected = rollout.generate(model, [[5, 9, 3]], 1, max_new_tokens=6, seed=7).completions()[0]
    assert [token for token, _ in zip(stream, expected)] == expected


def test_a_critic_without_a_base_model_is_refused():
    class Whole:
        config, device = FalconConfig(), torch.device("cpu")

        def base_model(self, **_):
            return object()

    with pytest.raises(UserError, match="no base model"):
        critic.hidden_width(Whole())
