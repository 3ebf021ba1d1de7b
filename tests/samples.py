"""Fixed samples of a small random model in float64, and a step on them, for the tests of the algorithms."""

import copy

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import tinyr1
from critic import Critic, ImplicitPRM
from engine import rollout
from runtime.learner import Learner
from tasks import rewards
from tinyr1 import ALGORITHMS, Policy, Train

G, CAP, START = 4, 9, 3  # samples per prompt, cap, length of the prompts
LENGTH = [4, 9, 1, 6, 9, 2, 7, 5, 3, 8, 6, 2]
REWARD = [1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]  # the middle group has no signal
BASE = dict(precision="fp32", grad_clip=1e9, max_new_tokens=CAP, prompts=3, group=G, overlong_buffer=4)
EXTRA = {  # what the rows' own values would leave idle or too small to see
    "ppo": dict(gamma=0.9, gae_lambda=0.8, kl=0.05),
    "prime": dict(prm_beta=0.7, gamma=0.9),
    "cispo": dict(clip_high=0.15),
}


class Sgd(Learner):
    """A Learner whose step moves the weights by lr times the gradient."""

    def __init__(self, module, lr=1.0):
        super().__init__(module, lr, grad_clip=1e9)
        self.optimizer = torch.optim.SGD(module.parameters(), lr=lr)


def config(name, **more):
    return Train(**BASE | ALGORITHMS[name] | EXTRA.get(name, {}) | more)


def perturbed(model, scale, seed):
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    for p in other.parameters():
        p.data += scale * torch.randn_like(p)
    return other


def small_model(seed=0):
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def make_models():
    """The policy, the one that sampled (by a hair for GSPO's narrow clip), the reference and a PRM."""
    model = small_model().double()
    old = {name: perturbed(model, 3e-4 if name == "gspo" else 0.03, 5) for name in ALGORITHMS}
    return model, old, perturbed(model, 0.05, 6), perturbed(model, 0.05, 7)


def make_samples(cfg, rollout, correct):
    """Samples whose task reward is 1 if correct, else 0, with --rewards applied."""
    lengths = rollout.length.tolist()
    records = [
        {"completion": "", "tokens": n, "reward": float(c), "correct": bool(c), "answer": "1"}
        for n, c in zip(lengths, correct)
    ]
    total, components = rewards.total(records, cfg, 0)
    return tinyr1.Samples([None] * (len(records) // cfg.group), rollout, records, np.array(total), components)


def make(name, models, extra=0, order=None, **more):
    """(Policy, Batch with its advantages, aux) of the fixed samples; `order` permutes whole groups and the
    rows within them.
    """
    model, old, ref, prm = models
    cfg = config(name, **more)
    policy, sampler, reference, prm = (
        Policy(m, cfg.temperature, "fp32") for m in (copy.deepcopy(model), old[name], ref, prm)
    )
    order = list(range(12)) if order is None else order
    length = torch.tensor(LENGTH)
    ids = torch.randint(1, 31, (12, START + CAP), generator=torch.Generator().manual_seed(3))
    ids[torch.arange(START + CAP) >= (START + length)[:, None]] = 0
    ids, length = torch.nn.functional.pad(ids, (0, extra))[order], length[order]
    logp = torch.zeros(12, START + CAP + extra - 1, dtype=torch.float64)
    roll = rollout.Rollout(ids, torch.full((12,), START), length, logp, length < CAP)
    samples = make_samples(cfg, roll, [REWARD[i] for i in order])
    batch = tinyr1.make_batch(samples, cfg, 0, cfg.kl)
    tinyr1.compute_logprobs(batch, sampler, reference, cfg)
    batch.old_logprobs = batch.map(lambda *x: sampler(*x)[0])
    aux = None
    if cfg.aux == "critic":
        aux = Critic(policy, cfg)
        torch.manual_seed(8)
        torch.nn.init.normal_(aux.head.weight, std=0.3)
    elif cfg.aux == "prm":
        aux = ImplicitPRM(prm, cfg)
    if aux:
        aux.learner.optimizer = torch.optim.SGD(aux.learner.module.parameters(), lr=1.0)
        aux.prepare(batch)
    tinyr1.compute_advantages(batch, cfg)
    return policy, batch, aux


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def step(policy, batch):
    """Loss and gradient of an update: SGD with lr 1 moves by the gradient."""
    before = flat(policy)
    metrics = tinyr1.update(Sgd(policy), batch, batch.cfg)
    return metrics["loss"], before - flat(policy)
