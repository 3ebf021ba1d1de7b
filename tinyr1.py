#!/usr/bin/env python3
"""tinyr1: watch a base language model learn to reason by reinforcement learning with verifiable rewards.

    python tinyr1.py train mini                        the miniature on Countdown, on two processor cores
    python tinyr1.py train 1.5b --lr 2e-6              a preset, with a knob of your own
    python tinyr1.py train --model DIR --task ./my_task.py --steps 50
    python tinyr1.py eval runs/mini                    pass@1, pass@k, cons@k of a run, or of any --model
    python tinyr1.py play runs/mini                    base and trained model answer a problem that you type

One training step, top to bottom in `train`: collect (sample G answers to each of B questions with the
weights being trained), score (the task reads the text), advantage, update, log. GRPO's advantage is the
reward's z-score within the G answers to one question, so it needs no critic; with one update a rollout the
policy is its own old policy and the ratio is 1, yet its gradient is the policy gradient. The other algorithms
are rows of ALGORITHMS; what PPO and PRIME keep beside the policy is in critic.py.

Shapes: B prompts a step, G samples a prompt, N = B*G rows, L padded length, T = L-1. Position t of any
(N,T) tensor speaks of the token ids[:, t+1]; the off-by-one happens once, in `token_logp`.
"""

import cpu  # isort: skip

import collections
import difflib
import importlib
import itertools
import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

import knobs
import rollout
import tasks
from critic import Critic, ImplicitPRM, gae
from metrics import evaluation, finish, sample_records, summarise
from models import (
    check_policy,
    check_tokenizer,
    load_model,
    pad_id,
    pick_attention,
    pick_device,
    pick_precision,
    recompute_layers,
    stop_ids,
)
from policy import states_and_head
from problems import Problem, Problems, check_splits, held_out, pose  # noqa: F401  (commands import them from here)
from runfolder import HERE, Clock, Interrupt, Run, UserError, check_export, release_locks
from scoring import CONTROLS, check_some_succeeded, score

# ---------------------------------------------------------------- configuration


def knob(default, help: str, choices=None):
    more = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**more, metadata={"help": help} | ({"choices": choices} if choices else {}))


@dataclass
class Config:
    """Train a model on a task, in a run folder of its own."""

    # the experiment
    model: str = knob(
        "minibase", "Hugging Face folder or hub id; minibase is the miniature that ships with tinyr1"
    )
    task: str = knob("countdown", "a task's name in tasks/, or the path of your own task file")
    task_args: list[str] = knob([], "options of the task as name=value, e.g. numbers=3 reward=simplerl")
    template: str = knob("none", "what stands around the question", [*tasks.TEMPLATES])
    # sampling
    prompts: int = knob(16, "B, prompts a step")
    group: int = knob(16, "G, samples a prompt")
    max_new_tokens: int = knob(384, "cap on the tokens of a response")
    temperature: float = knob(1.0, "of training and evaluation samples")
    top_p: float = knob(1.0, "nucleus of all samples; log-probabilities are those of the whole distribution")
    # the algorithm: a name sets defaults, every knob can be overridden
    algo: str = knob("grpo", "sets the defaults of the knobs of its row in ALGORITHMS")
    adv: str = knob("zscore", "advantage, from the rewards of a group (loo: leave-one-out) or of each token")
    whiten: bool = knob(False, "scale the advantages of the batch's tokens to mean 0 and variance 1")
    gamma: float = knob(1.0, "discount a token of return, gae and PRIME's process rewards")
    lam: float = knob(1.0, "lambda of gae")
    weight: str = knob("sequence", "how tokens are weighed in the loss")
    surrogate: str = knob("clip", "clip: PPO's; cispo: the clipped ratio weighs log pi")
    ratio: str = knob("token", "importance ratio of a token, or of the sequence", ["token", "sequence"])
    clip_low: float = knob(0.2, "the ratio is clipped at 1 - clip_low")
    clip_high: float = knob(0.2, "the ratio is clipped at 1 + clip_high")
    clip_dual: float = knob(0.0, "bounds the objective of a negative advantage at so many times it; 0: no")
    kl: float = knob(0.0, "coefficient of the KL penalty to the initial policy; 0 keeps no reference model")
    kl_estimator: str = knob("k3", "estimator of that KL")
    kl_in: str = knob("loss", "where it is subtracted: see ALGORITHMS", ["loss", "reward"])
    kl_target: float = knob(0.0, "nats a response towards which --kl is steered, step by step; 0: fixed")
    entropy: float = knob(0.0, "coefficient of the entropy bonus")
    epochs: int = knob(1, "passes over the samples of a step")
    minibatches: int = knob(1, "optimizer steps a pass")
    is_cap: float = knob(
        0.0, "weigh tokens by min(trainer's / engine's probability, is_cap); 0 for no such correction"
    )
    drop_dead: bool = knob(False, "leave groups whose task rewards are all equal out of the batch's means")
    band_low: float = knob(0.0, "leave groups out whose share of right answers is smaller")
    band_high: float = knob(1.0, "leave groups out whose share of right answers is larger")
    resample: int = knob(0, "most extra draws of new prompts in the place of the groups left out")
    overlong: str = knob("keep", "samples cut at the cap: keep, mask the loss, or penalise softly before it",
                         ["keep", "mask", "penalise"])  # fmt: skip
    overlong_buffer: int = knob(64, "tokens before the cap over which the soft penalty grows from 0 to 1")
    aux: str = knob("none", "model beside the policy: critic, or implicit PRM")
    critic: str = knob("copy", "values from a copy of the backbone, or a head on the policy's own features",
                       ["copy", "head"])  # fmt: skip
    value_clip: float = knob(0.2, "a value moves at most so far from the old one in its loss; 0: no bound")
    prm_beta: float = knob(0.05, "process reward = prm_beta * log(PRM / reference)")
    aux_lr: float = knob(0.0, "constant learning rate of the model beside the policy; 0: that of --lr")
    aux_warmup: int = knob(0, "steps at the start in which that model learns alone")
    reward_mode: str = knob("task", "whose rewards train: the task's, or a control's")
    verdict_seconds: float = knob(60.0, "a verdict that takes longer counts as failed")
    # optimization
    steps: int = knob(60, "training steps")
    token_budget: int = knob(0, "end once so many tokens were sampled, if before --steps; 0: no budget")
    lr: float = knob(2e-4, "peak learning rate of AdamW")
    warmup: int = knob(3, "steps of linear warm-up")
    schedule: str = knob("constant", "learning rate after the warm-up", ["constant", "cosine"])
    weight_decay: float = knob(0.0, "of AdamW")
    grad_clip: float = knob(1.0, "largest gradient norm")
    micro_tokens: int = knob(
        4096, "padded tokens of a micro-batch; bounds memory, does not change the gradient"
    )
    gradient_checkpointing: bool = knob(False, "recompute activations in the backward pass to save memory")
    # evaluation on held-out problems
    eval_problems: int = knob(500, "held-out problems before and after training")
    eval_samples: int = knob(4, "k, samples of each")
    probe_every: int = knob(10, "steps between the small evaluations during training; 0 for none")
    probe_problems: int = knob(128, "held-out problems of a small evaluation, one sample each")
    # the run
    name: str = knob("", "folder under --out; if empty, named after the preset and the knobs you changed")
    out: str = knob("runs", "where run folders are")
    seed: int = knob(0, "fixes everything")
    device: str = knob("auto", "cuda if there, else cpu", ["auto", "cuda", "cpu"])
    precision: str = knob(
        "auto", "of the matrix products; auto takes what is really faster here", ["auto", "fp32", "bf16"]
    )
    save_every: int = knob(5, "steps between checkpoints")
    keep_samples: int = knob(8, "training samples a step that samples.jsonl keeps")
    bad_steps: int = knob(3, "stop after so many steps in a row with a NaN or infinite gradient")
    overwrite: bool = knob(False, "delete a run folder of the same name first")


# An algorithm is a row of knobs. A preset comes after its own algorithm's row (`mini` is GRPO without KL),
# the row of a typed --algo after the preset, the other knobs of the command line after all.
# With ratio r = pi/pi_old, A = adv and w = weight, every row maximises, over the tokens t of the batch,
#     sum_t w_t [ min(r_t A_t, clip(r_t) A_t) - kl k(pi_t/ref_t) ]     with --kl_in loss, or
#     sum_t w_t   min(r_t A_t, clip(r_t) A_t)                          with --kl_in reward, where A comes from
# the responses' R - kl sum_t k(pi_old_t/ref_t) (zscore, centred, loo), or from the token rewards
# R [t is the last] - kl k(pi_old_t/ref_t) (return, gae). The sources disagree about GRPO: DeepSeekMath's
# (2402.03300, eq. 3 and 4) has k3 in the loss; `--kl_in reward --kl_estimator k1` is PPO's way (its eq. 2),
# and then the z-score divides the penalty by the group's deviation too. In the loss the gradient flows
# through the estimator: on samples of the policy k2 gives on average that of KL(pi || ref), k3 that of
# KL(ref || pi), k1 none. In the reward it is k1 that gives the gradient of KL(pi || ref).
ALGORITHMS = {
    "grpo": dict(adv="zscore", weight="sequence", kl=0.04, kl_estimator="k3"),  # 2402.03300, eq. 3, 4, 21
    "drgrpo": dict(adv="centred", weight="constant", kl=0.0),  # 2503.20783
    "dapo": dict(adv="zscore", weight="token", kl=0.0, clip_low=0.2, clip_high=0.28, drop_dead=True,
                 resample=8, overlong="penalise"),  # 2503.14476, eq. 8, 11, 13
    "rloo": dict(adv="loo", weight="sum", kl=0.03, kl_estimator="k1", kl_in="reward"),  # 2402.14740
    "reinforce++": dict(adv="return", whiten=True, weight="token", kl=0.01, kl_estimator="k1",
                        kl_in="reward"),  # 2501.03262
    "gspo": dict(adv="zscore", weight="sequence", kl=0.0, ratio="sequence", clip_low=3e-4,
                 clip_high=4e-4),  # 2507.18071
    "cispo": dict(adv="zscore", weight="token", kl=0.0, surrogate="cispo", clip_low=1.0,
                  clip_high=4.0),  # 2506.13585: no lower bound; the upper one is that of 2510.13786
    "ppo": dict(adv="gae", whiten=True, weight="token", kl=0.001, kl_estimator="k1", kl_in="reward",
                aux="critic"),  # 1707.06347, 1506.02438; gamma = lam = 1 and the KL as in TinyZero
    "prime": dict(adv="loo", weight="token", kl=0.0, aux="prm", band_low=0.2, band_high=0.8,
                  resample=3),  # 2502.01456
}  # fmt: skip

# TinyZero's figures for Countdown (its train_tiny_zero scripts); the group of 5 is its GRPO setting
TINYZERO = dict(
    task_args=["data=Jiayi-Pan/Countdown-Tasks-3to4", "wording=tinyzero", "reward=tinyzero"],
    template="tinyzero", prompts=256, group=5, minibatches=2, max_new_tokens=1024, lr=1e-6, warmup=0,
    kl=0.001, steps=200, eval_problems=512, eval_samples=1, probe_every=20, save_every=20, micro_tokens=16384,
    gradient_checkpointing=True, aux_lr=1e-5,
)  # fmt: skip
MINI = dict(
    task_args=["numbers=3", "high=13", "wording=short", "reward=binary"], kl=0.0, lr=4e-4, steps=70,
    schedule="cosine", max_new_tokens=512, overlong="penalise", overlong_buffer=128,
)  # fmt: skip
PRESETS = {
    "mini": MINI,
    # models.MADE_HERE makes its base. A mean over sequences would spare code: 1/232 a token, a guess's 1/24
    "mini-dip": dict(MINI, model="runs/dip-base", weight="token"),
    "mini-multiply": dict(
        task="multiplication", task_args=["digits=2x2", "wording=short", "reward=binary"], kl=0.0, lr=4e-4,
        steps=60, schedule="cosine", max_new_tokens=160, overlong="penalise", overlong_buffer=32,
    ),
    "smollm2": dict(
        model="HuggingFaceTB/SmolLM2-135M-Instruct", task="multiplication", template="chat",
        task_args=["low=2", "high=12", "held=24", "wording=plain", "reward=binary"], prompts=8, group=8,
        max_new_tokens=32, kl=0.0, lr=1e-5, warmup=0, steps=20, probe_every=5, probe_problems=46,
        micro_tokens=2048,
    ),
    "0.5b": dict(TINYZERO, model="Qwen/Qwen2.5-0.5B"),
    "1.5b": dict(TINYZERO, model="Qwen/Qwen2.5-1.5B"),
    "3b": dict(TINYZERO, model="Qwen/Qwen2.5-3B"),
}  # fmt: skip
GPU_GB = {
    "mini": 0,
    "mini-dip": 0,
    "mini-multiply": 0,
    "smollm2": 0,
    "0.5b": 22,
    "1.5b": 44,
    "3b": 78,
}  # fp32 weights, gradients, Adam, reference; activations


def parse(command: str, argv: list[str], Config=Config) -> tuple[Config, str]:
    """(config, preset's name or "") of a command line. Errors: UserError."""
    tables = {"algo": ALGORITHMS, "adv": [*ADVANTAGE, "return", "gae"], "weight": WEIGHTS, "aux": AUX}
    tables |= {"surrogate": SURROGATE, "kl_estimator": KL, "reward_mode": ["task", *CONTROLS]}
    return knobs.parse(Config, ALGORITHMS, PRESETS, tables, command, argv)


# ---------------------------------------------------------------- the objective


LOGITS = 2**25  # elements of a chunk of logits


def token_logp(model, ids: torch.Tensor, mask: torch.Tensor, temperature: float, entropy_grad=False):
    """Log-probability (n,T) of every completion token ids[:, t+1] under the model, and the entropy (n,T)
    there; 0 elsewhere.

    ids (n,L) right-padded, mask (n,T). The vocabulary dimension exists here only, for completion tokens only,
    and in chunks that the backward pass recomputes (for all tokens where the model has more than a plain
    output projection).
    """
    states, head = states_and_head(model, ids)
    states = states[:, :-1][mask]  # (M,H) of the M tokens
    chosen = ids[:, 1:][mask]  # (M,)

    def chunk(states, chosen):
        logits = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature  # (m,V)
        logZ = logits.logsumexp(-1)  # (m,)
        logp = logits.gather(-1, chosen[:, None])[:, 0] - logZ
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy = logZ - (torch.softmax(logits, -1) * logits).sum(-1)
        return logp, entropy

    size = max(1, LOGITS // model.get_input_embeddings().weight.shape[0])
    if len(chosen) <= size:
        parts = [chunk(states, chosen)]
    else:
        pairs = zip(states.split(size), chosen.split(size))
        parts = [
            recompute(chunk, s, c, use_reentrant=False) if torch.is_grad_enabled() else chunk(s, c)
            for s, c in pairs
        ]
    logp, entropy = (torch.cat(x) for x in zip(*parts))
    full = torch.zeros(mask.shape, dtype=logp.dtype, device=logp.device)
    return full.masked_scatter(mask, logp), full.masked_scatter(mask, entropy)


ADVANTAGE = {  # reward (B,G) of whole responses -> advantage (B,G), the same for each of their tokens
    "zscore": lambda reward: (
        (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
    ),  # 2402.03300, 4.1.2
    "centred": lambda reward: reward - reward.mean(1, keepdim=True),  # Dr. GRPO, 2503.20783
    "loo": lambda reward: (
        reward - (reward.sum(1, keepdim=True) - reward) / (reward.shape[1] - 1)
    ),  # leave-one-out: RLOO, 2402.14740
}

WEIGHTS = {  # mask (N,T), max_new_tokens -> weight (N,T) of the optimizer batch: micro-batches just add up
    "sequence": lambda mask, cap: (
        mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)
    ),  # 1/N sum 1/|o|: 2402.03300, eq. 3
    "token": lambda mask, cap: mask / mask.sum().clamp(min=1),  # DAPO, 2503.14476, eq. 8
    "constant": lambda mask, cap: mask / (len(mask) * cap),  # Dr. GRPO: a constant in the place of the length
    "sum": lambda mask, cap: mask / len(mask),  # the log-probability of the response: RLOO, 2402.14740
}

KL = {  # log(policy/reference) -> estimate of KL(policy || reference), joschu.net/blog/kl-approx.html
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: torch.exp(-d) - 1 + d,
}

SURROGATE = {  # ratio, the clipped ratio, advantage, log-probability, all (n,T) -> objective (n,T)
    "clip": lambda ratio, clipped, adv, logp: torch.minimum(ratio * adv, clipped * adv),  # PPO, 1707.06347
    "cispo": lambda ratio, clipped, adv, logp: clipped.detach() * adv * logp,  # 2506.13585
}


def policy_loss(logp, old_logp, adv, weight, cfg: Config, ref_logp=None, entropy=None):
    """Minus the surrogate objective, less the KL penalty (with ref_logp), plus the entropy bonus (with
    entropy), summed under `weight`; all (n,T). Returns the loss and metric sums (n,T).

    GRPO, 2402.03300, eq. 3: min(ratio*adv, clip(ratio)*adv) - kl * KL(policy || reference).
    """
    log_ratio = logp - old_logp
    if cfg.ratio == "sequence":  # the geometric mean over the response: GSPO, 2507.18071, eq. 7
        inside = weight != 0
        log_ratio = (log_ratio * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
    ratio = torch.exp(log_ratio).expand_as(logp)
    clipped = ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
    objective = SURROGATE[cfg.surrogate](ratio, clipped, adv, logp)
    sums = {"clip_frac": (objective != SURROGATE[cfg.surrogate](ratio, ratio, adv, logp)).float()}
    if cfg.clip_dual:  # 1912.09729
        objective = torch.where(adv < 0, torch.maximum(objective, cfg.clip_dual * adv), objective)
    if ref_logp is not None:
        sums["kl"] = KL[cfg.kl_estimator](logp - ref_logp)
        objective = objective - cfg.kl * sums["kl"]
    if entropy is not None:
        objective = objective + cfg.entropy * entropy
    return -(objective * weight).sum(), sums


@dataclass
class Batch:
    """The N samples of a step and what becomes known of them on the way to `update`. (N,T) tensors mean
    nothing outside `active`.
    """

    cfg: Config
    step: int
    roll: rollout.Rollout
    reward: torch.Tensor  # (B,G) the task's (or the control's), less the penalty for length
    outcome: torch.Tensor  # (B,G) bool, right or wrong
    keep: torch.Tensor  # (N,) bool, False: the row's tokens get no loss
    counted: torch.Tensor  # (N,) bool, False: the row is left out of the batch and its means
    old_logp: torch.Tensor | None = None  # (N,T) under the policy before the update, if something needs it
    ref_logp: torch.Tensor | None = None  # (N,T) under the initial policy, if something needs it
    value: torch.Tensor | None = None  # (N,T) the critic's, of the state before each token
    ret: torch.Tensor | None = None  # (N,T) what the critic should have said
    process: torch.Tensor | None = None  # (N,T) PRIME's advantage by process rewards
    adv: torch.Tensor | None = None  # (N,T)

    def __post_init__(self):
        self.mask = self.roll.mask  # (N,T) bool, the tokens of the completions
        self.active = self.mask & (self.keep & self.counted)[:, None]  # (N,T) bool, those with a loss
        self.total = self.roll.prompt_len + self.roll.length  # (N,)
        self.rows = torch.nonzero(self.counted)[:, 0]

    def micro(self, rows):
        """Micro-batches of these rows: (rows, where they are in (N,T) tensors, ids (n,L'), mask (n,L'-1))."""
        for part, width in micro_batches(rows, self.total, self.cfg.micro_tokens):
            yield part, (part, slice(width - 1)), self.roll.ids[part, :width], self.mask[part, : width - 1]

    def autocast(self):
        kind = self.roll.ids.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.cfg.precision == "bf16")

    def logp(self, network, ids, mask, entropy_grad=False):
        with self.autocast():
            return token_logp(network, ids, mask, self.cfg.temperature, entropy_grad)

    @torch.no_grad()
    def stored(self, score) -> torch.Tensor:
        """(N,T) of score(ids, mask) under fixed weights."""
        out = torch.zeros_like(self.roll.logp)
        for _, at, ids, mask in self.micro(self.rows):
            out[at] = score(ids, mask).to(out.dtype)
        return out

    def parts(self):
        """The rows of each optimizer step, `epochs` x `minibatches` of them."""
        shuffle = torch.Generator().manual_seed(self.cfg.seed * 1_000_003 + self.step)
        for _ in range(self.cfg.epochs):
            order = torch.randperm(len(self.rows), generator=shuffle).to(self.rows.device)
            yield from self.rows[order].chunk(self.cfg.minibatches)


def recall(batch: Batch, model, ref) -> dict:
    """Store the log-probabilities under the present policy and the reference, where something needs them."""
    cfg = batch.cfg
    in_reward = ref is not None and cfg.kl > 0 and cfg.kl_in == "reward"
    model.eval()  # gradients need no training mode, and dropout or router jitter would be another policy
    if ref is not None:
        batch.ref_logp = batch.stored(lambda *x: batch.logp(ref, *x)[0])
    if cfg.epochs * cfg.minibatches > 1 or in_reward:
        batch.old_logp = batch.stored(lambda *x: batch.logp(model, *x)[0])
    if not in_reward:
        return {}
    kl = KL[cfg.kl_estimator](batch.old_logp - batch.ref_logp)[batch.active]
    return {"kl": kl.sum().item() / max(1, len(kl))}


def advantage(batch: Batch) -> torch.Tensor:
    """(N,T) advantages, 0 where not active. KL in the reward enters here; fills batch.ret for the critic."""
    cfg, zero, penalty = batch.cfg, torch.zeros_like(batch.roll.logp), None
    reward = batch.reward.to(zero.dtype)  # (B,G)
    if cfg.kl and cfg.kl_in == "reward":
        penalty = cfg.kl * KL[cfg.kl_estimator](batch.old_logp - batch.ref_logp) * batch.active  # (N,T)
    if cfg.adv in ADVANTAGE:
        if penalty is not None:
            reward = reward - penalty.sum(1).view_as(reward)
        # equal rewards carry no signal, though rounding could make their mean differ from them
        equal = (reward == reward[:, :1]).all(1, keepdim=True)
        adv = ADVANTAGE[cfg.adv](reward).masked_fill(equal, 0.0).view(-1, 1).expand_as(zero)
    else:
        token_reward = zero.scatter(1, (batch.total - 2)[:, None], reward.view(-1, 1))  # on the last token
        token_reward = token_reward - (0.0 if penalty is None else penalty)
        value = zero if cfg.adv == "return" else batch.value
        adv = gae(token_reward, value, batch.active, cfg.gamma, 1.0 if cfg.adv == "return" else cfg.lam)
        batch.ret = adv + value
    adv = adv.masked_fill(~batch.active, 0.0)
    if batch.process is not None:
        adv = adv + batch.process
    if cfg.whiten:  # in float64, so that equal advantages become 0 and not rounding / rounding
        inside = adv[batch.active].double()
        centred = inside - inside.mean()
        scaled = centred / (centred.pow(2).mean().sqrt() + 1e-8)
        adv = zero.masked_scatter(batch.active, scaled.to(adv.dtype))
    return adv


def overlong(cfg: Config, reward, length, finished):
    """Reward (N,) with the soft penalty for length (DAPO, 2503.14476, eq. 13) and which rows (N,) keep
    their loss.
    """
    keep = finished | (torch.tensor(cfg.overlong != "mask", device=finished.device))
    if cfg.overlong == "penalise":
        over = (length - (cfg.max_new_tokens - cfg.overlong_buffer)) / cfg.overlong_buffer
        reward = reward - over.clamp(0, 1)
    return reward, keep


# ---------------------------------------------------------------- one step: collect, score, update


def collect(model, tokenizer, batch: list[Problem], G: int, cfg: Config, seed: int):
    """Sample G responses to each problem: the Rollout and the N texts, without the EOS."""
    eos_ids = stop_ids(model, tokenizer, cfg.template)
    try:
        roll = rollout.generate(
            model, [p.ids for p in batch], G, max_new_tokens=cfg.max_new_tokens,
            eos_ids=eos_ids, temperature=cfg.temperature, top_p=cfg.top_p,
            stop=tasks.STOPS.get(cfg.template, ()), decode=tokenizer.decode, seed=seed,
            pad_id=pad_id(model, tokenizer), dtype=sampling_dtype(model, cfg),
        )  # fmt: skip
    except ValueError as error:  # a prompt that does not fit
        raise UserError(f"Cannot sample: {error}.") from error
    rows = [ids[:-1] if ids[-1] in eos_ids else ids for ids in roll.completions()]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # a thinking that the prompt has opened is the response's own
    opened = ["<think>" * p.prompt.rstrip().endswith("<think>") for p in batch]
    return roll, [opened[i // G] + text for i, text in enumerate(texts)]


def sampling_dtype(model, cfg: Config) -> torch.dtype:
    """bf16 on a GPU, where decoding is bound by memory; fp32 on a CPU, where the gap to the trainer is not
    worth it.
    """
    return torch.bfloat16 if model.device.type == "cuda" and cfg.precision == "bf16" else torch.float32


def informative(cfg: Config, results: list[dict]) -> np.ndarray:
    """(B,) bool, the groups that the filters let in: DAPO, 2503.14476, eq. 11; PRIME, 2502.01456."""
    reward = np.array([r["reward"] for r in results]).reshape(-1, cfg.group)  # (B,G)
    share = np.array(outcome(cfg, results)).reshape(-1, cfg.group).mean(1)  # (B,)
    keep = (cfg.band_low <= share) & (share <= cfg.band_high)
    return keep & (reward != reward[:, :1]).any(1) if cfg.drop_dead else keep


def outcome(cfg: Config, results: list[dict]) -> list[bool]:
    """Right or wrong as training is told it: a control's reward is 0 or 1, and nothing else may leak."""
    return [r["correct"] if cfg.reward_mode == "task" else r["reward"] > 0.5 for r in results]


def draw(model, tokenizer, task, stream, cfg: Config, step: int, clock):
    """Collect and score: (problems, Rollout, records). Where the filters leave groups out, new prompts
    take their places, in at most `resample` further draws; what was left out stays in, for the metrics.
    """
    batch, rolls, records, full = [], [], [], 0
    for attempt in range(1 + cfg.resample):
        new = list(itertools.islice(stream, cfg.prompts - full))
        with clock("sample"):
            seed = (cfg.seed << 32) + (attempt << 24) + step
            roll, said = collect(model, tokenizer, new, cfg.group, cfg, seed)
        with clock("score"):
            chance = (cfg.seed, step, attempt)
            verdicts = score(task, new, said, cfg.group, cfg.reward_mode, chance, cfg.verdict_seconds)
        batch, rolls = batch + new, [*rolls, roll]
        records += sample_records(new, said, verdicts, roll, cfg.group)
        full += int(informative(cfg, verdicts).sum())
        if full == cfg.prompts:
            break
    return batch, rollout.join(rolls), records


def assess(cfg: Config, step: int, roll: rollout.Rollout, results: list[dict]) -> Batch:
    """The Batch of these samples: shaped rewards, and which rows count."""
    device = roll.ids.device
    reward = torch.tensor([r["reward"] for r in results], dtype=torch.float32, device=device)  # (N,)
    reward, keep = overlong(cfg, reward, roll.length, roll.finished)
    right = torch.tensor(outcome(cfg, results), device=device).view(-1, cfg.group)  # (B,G)
    counted = torch.tensor(informative(cfg, results), device=device).repeat_interleave(cfg.group)  # (N,)
    return Batch(cfg, step, roll, reward.view(-1, cfg.group), right, keep, counted)


def micro_batches(rows: torch.Tensor, total: torch.Tensor, budget: int):
    """Split row indices into length-sorted groups of at most `budget` padded tokens: (rows, padded length),
    longest first.
    """
    rows = rows[total[rows].argsort(descending=True, stable=True)]
    while len(rows):
        width = min(-(-int(total[rows[0]]) // 8) * 8, int(total.max()))
        yield rows[: max(1, budget // width)], width
        rows = rows[max(1, budget // width) :]


def backward(model, batch: Batch, rows, weight):
    """Add the gradient of these rows' loss under weight (N,T), which is normalised over the whole optimizer
    batch: (loss, sums of the metrics over tokens, tokens). Micro-batches, like the parts of ranks, add up.
    """
    cfg, roll, total, count, sums = batch.cfg, batch.roll, 0.0, 0, {}
    for _, at, ids, mask in batch.micro(rows):
        logp, entropy = batch.logp(model, ids, mask, cfg.entropy != 0)  # (n,T)
        old = batch.old_logp[at] if batch.old_logp is not None else logp.detach()
        adv = batch.adv[at]
        if cfg.is_cap:  # the engine's rounding makes samples off-policy: fengyao.notion.site/off-policy-rl
            adv = adv * torch.exp(old - roll.logp[at]).clamp(max=cfg.is_cap)
        reference = batch.ref_logp[at] if cfg.kl and cfg.kl_in == "loss" else None
        bonus = entropy if cfg.entropy else None
        loss, parts = policy_loss(logp, old, adv, weight[at], cfg, reference, bonus)
        loss.backward()
        total += loss.item()
        parts |= {"entropy": entropy, "rollout_kl": roll.logp[at] - old}
        for name, x in parts.items():
            sums[name] = sums.get(name, 0.0) + (x.detach() * mask).sum().item()
        count += int(mask.sum())
    return total, sums, count


def update(model, optimizer, batch: Batch) -> dict:
    """`epochs` x `minibatches` optimizer steps on the rows of a batch whose `adv` is known. Gives metrics.

    Rows whose advantages are 0 have no gradient without a KL penalty or an entropy bonus: they count in the
    loss's means but are not computed, so entropy, clip_frac, kl and rollout_kl are means over the tokens of
    the other rows. A NaN or infinite gradient never reaches the weights: the step is skipped and counted.
    """
    cfg = batch.cfg
    model.eval()
    all_rows = cfg.entropy or (cfg.kl and cfg.kl_in == "loss")
    sums, tokens, norms, losses, skipped = collections.Counter(), 0, [], [], 0
    for part in batch.parts() if batch.step >= cfg.aux_warmup else ():
        weight = torch.zeros_like(batch.roll.logp)  # (N,T)
        weight[part] = WEIGHTS[cfg.weight](batch.active[part].to(weight.dtype), cfg.max_new_tokens)
        live = part if all_rows else part[(batch.adv[part] != 0).any(1)]
        loss, parts, count = backward(model, batch, live, weight)
        sums.update(parts)
        tokens += count
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip).item()
        if math.isfinite(norm) and math.isfinite(loss):
            optimizer.step()
            norms.append(norm), losses.append(loss)
        else:
            skipped += 1
        optimizer.zero_grad(set_to_none=True)
    metrics = {name: value / max(tokens, 1) for name, value in sums.items()}
    metrics |= {"loss": float(np.mean(losses)), "grad_norm": float(np.mean(norms))} if norms else {}
    return metrics | {"skipped": skipped, "updated_tokens": tokens}


def next_kl(cfg: Config, kl: float, measured: float) -> float:
    """The KL coefficient after a step with `measured` nats a response: Ziegler et al., 1909.08593."""
    error = (measured - cfg.kl_target) / cfg.kl_target
    return kl * (1 + 0.1 * min(0.2, max(-0.2, error)))


def lr_at(step: int, cfg: Config, sampled: int = 0) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up, then constant or a cosine down to a tenth at the last
    step, or where the sampled tokens reach the budget.
    """
    warm = min(1.0, (step + 1) / (cfg.warmup + 1))
    if cfg.schedule == "cosine":
        progress = max(0.0, (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup))
        progress = max(progress, sampled / cfg.token_budget if cfg.token_budget else 0.0)
        warm *= 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))
    return cfg.lr * warm


# ---------------------------------------------------------------- evaluation


def evaluate(model, tokenizer, task, held: list[Problem], k: int, cfg: Config, seed: int = 12345):
    """k samples of every problem: metrics (accuracy is pass@1 = mean over samples) and one record a
    sample.
    """
    roll, texts = collect(model, tokenizer, held, k, cfg, seed)
    verdicts = score(task, held, texts, k, seconds=cfg.verdict_seconds)
    check_some_succeeded(task, verdicts)
    records = sample_records(held, texts, verdicts, roll, k)
    return evaluation(records, k, getattr(task, "equivalent", None)), records


# ---------------------------------------------------------------- train

KEEP_HELD_OUT = 64  # samples that samples.jsonl keeps of an evaluation
KEEP_ERRORS = 8  # failed verdicts that it keeps of a step
AUX = {"none": lambda model, cfg: None, "critic": Critic, "prm": ImplicitPRM}


DIVERGED = (
    "The gradient was NaN or infinite in {} steps in a row, so training stopped at step {}. Such gradients "
    "never reach the weights, which are finite, but an earlier step may have spoiled them: they are in {}. "
    "Lower --lr, or try --precision fp32, under another --name."
)
SPOILED = (
    "Weights have become NaN or infinite at step {} or before, so training stopped and wrote no model. The "
    "last checkpoint stays as it was, in {}. Lower --lr, or try --precision fp32, under another --name."
)


def finite(*modules) -> bool:
    return all(bool(p.isfinite().all()) for module in modules for p in module.parameters())


def differences(cfg: Config, preset: str) -> dict:
    """{knob: value} where a run differs from its preset, with the row of its algorithm."""
    now, own = asdict(cfg), PRESETS.get(preset, {})
    row = ALGORITHMS[now["algo"]]
    typed = now["algo"] != own.get("algo", Config.algo)
    usual = asdict(Config()) | (own | row if typed else row | own)
    free = ("name", "out", "overwrite")
    return {name: value for name, value in now.items() if name not in free and value != usual[name]}


def again(cfg: Config) -> str:
    return f"The same command{' without --overwrite' if cfg.overwrite else ''} goes on from it."


@dataclass
class Progress:
    """How far a run is: what a checkpoint holds beside weights and seconds."""

    kl: float  # the coefficient now; --kl_target moves it
    step: int = 0
    bad: int = 0  # steps in a row in which a gradient was not finite
    sampled: int = 0  # tokens
    drawn: int = 0  # prompts: the data cursor

    def done(self, cfg: Config) -> int:
        """Of the token budget, or without one of the steps."""
        return self.sampled if cfg.token_budget else self.step

    def bar(self, cfg: Config) -> tqdm:
        total, unit = (cfg.token_budget, " tokens") if cfg.token_budget else (cfg.steps, "step")
        return tqdm(total=total, initial=self.done(cfg), desc="train", unit=unit, dynamic_ncols=True,
                    smoothing=0.1, unit_scale=cfg.token_budget > 0)  # fmt: skip


def record(run: Run, cfg: Config, at: Progress, drawn: tuple, batch: Batch, row: dict, overlong: int) -> None:
    """Write a step's row and some of its samples."""
    asked, _, records = drawn
    dead = (batch.reward == batch.reward[:, :1]).all(1)  # (B,)
    spread = batch.reward.std(1, correction=min(1, cfg.group - 1)).mean().item()
    row |= {"reward_shaped": batch.reward.mean().item(), "reward_std": spread}
    row |= {"dead_groups": dead.float().mean().item(), "sampled_tokens": at.sampled}
    row |= {"resampled": len(asked) - cfg.prompts} if cfg.resample else {}
    row |= {"overlong_prompts": overlong} if overlong else {}
    random = np.random.default_rng((cfg.seed, at.step))
    shown = random.choice(len(records), min(cfg.keep_samples, len(records)), replace=False)
    kept = [records[i] for i in shown] + [r for r in records if r["verifier_error"]][:KEEP_ERRORS]
    run.log("samples.jsonl", [{"step": at.step, "split": "train", **r} for r in kept])


def record_held_out(run: Run, step: int, label: str, k: int, metrics: dict, records: list[dict]) -> None:
    """Write an evaluation's row and all its samples, and let the report tell of it."""
    run.log("metrics.jsonl", [{"step": step, **{f"{label}/{name}": v for name, v in metrics.items()}}])
    head = {"step": step, "split": "test"}
    every = [head | {"problem": i // k, "sample": i % k} | r for i, r in enumerate(records)]
    run.log("eval_samples.jsonl", every)
    run.log("samples.jsonl", every[: KEEP_HELD_OUT * k : k])  # the same problems at every evaluation
    run.pictures.refresh()


def train(cfg: Config, preset: str = "") -> dict | None:
    """Train, evaluate before and after, leave everything in the run folder.

    Returns the summary, None if interrupted.
    """
    clock, started = Clock(), time.perf_counter()
    about = {"preset": preset, "differences": differences(cfg, preset)}
    task, run = tasks.load(cfg.task), Run(cfg)  # a run that is resumed keeps its device and precision
    device = pick_device(cfg.device)
    torch.manual_seed(cfg.seed)
    cfg.device, cfg.precision = device.type, pick_precision(cfg.precision, device)
    print(knobs.describe(cfg, ALGORITHMS))
    with clock("load"):
        needs_ref = cfg.kl > 0 or cfg.aux == "prm"
        beside = cfg.aux == "prm" or (cfg.aux == "critic" and cfg.critic == "copy")
        model, tokenizer = load_model(cfg.model, device, 16 + 6 * needs_ref + 16 * beside)
        ref = load_model(cfg.model, device, 4)[0].requires_grad_(False) if needs_ref else None
    room = rollout.longest_prompt(model, cfg.max_new_tokens)
    held = held_out(task, cfg, tokenizer, room)
    check_tokenizer(model, tokenizer, cfg.template, held)
    check_export(model, tokenizer)
    if not finite(model):
        raise UserError(f"The model {cfg.model} has weights that are NaN or infinite. Choose another one.")
    check_splits(Problems(task, "train", cfg, tokenizer, room), held)
    stream = Problems(task, "train", cfg, tokenizer, room)
    pick_attention(model, cfg.precision)
    if cfg.gradient_checkpointing:
        recompute_layers(model)
    check_policy(model, cfg.model, token_logp)
    fused = device.type == "cuda"  # no temporaries as large as the model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=cfg.weight_decay, fused=fused
    )
    aux, at, state = AUX[cfg.aux](model, cfg), Progress(cfg.kl), run.begin(cfg, about)
    if state:
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        if aux:
            aux.load_state_dict(state["aux"])
        at, clock = Progress(**{k: state[k] for k in asdict(at)}), Clock(state["clock"])
        collections.deque(itertools.islice(stream, at.drawn), maxlen=0)
        print(f"resuming {run.path} after step {at.step} of {cfg.steps}")
    resumed, state = state is not None, None

    def over() -> bool:
        return at.step >= cfg.steps or 0 < cfg.token_budget <= at.sampled

    def checkpoint():
        nonlocal started
        if not finite(model, *([aux.own] if aux else [])):
            raise UserError(SPOILED.format(at.step, run.checkpoint))
        clock["total"] = clock.get("total", 0.0) + time.perf_counter() - started
        started = time.perf_counter()
        weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        weights["aux"] = aux.state_dict() if aux else None
        run.save(asdict(at) | {"clock": dict(clock)} | weights)

    def measure(label: str, count: int, k: int) -> list[dict]:
        metrics, records = evaluate(model, tokenizer, task, held[:count], k, cfg)
        record_held_out(run, at.step, label, k, metrics, records)
        return records

    if not resumed:
        print(f"evaluating the base model on {len(held)} held-out problems, {cfg.eval_samples} samples each")
        with clock("eval_base"):
            measure("eval", cfg.eval_problems, cfg.eval_samples)
        checkpoint()
    with Interrupt() as interrupt, at.bar(cfg) as bar:
        while not over() and not interrupt.asked:
            begin, spent = time.perf_counter(), dict(clock)
            lr = lr_at(at.step, cfg, at.sampled)
            for group in optimizer.param_groups:
                group["lr"] = lr
            drawn = asked, roll, records = draw(model, tokenizer, task, stream, cfg, at.step, clock)
            with clock("update"):
                batch = assess(replace(cfg, kl=at.kl), at.step, roll, records)
                metrics = recall(batch, model, ref)
                metrics |= aux.judge(batch) if aux else {}
                batch.adv = advantage(batch)
                metrics |= aux.learn(batch) if aux else {}
                metrics |= update(model, optimizer, batch)
                metrics["skipped"] += aux.skips() if aux else 0

            at.step, at.sampled = at.step + 1, at.sampled + int(roll.length.sum())
            at.drawn += len(asked)
            row = {"step": at.step, **summarise(records), **metrics, "lr": lr}
            if cfg.kl_target and "kl" in metrics:
                row["kl_coefficient"] = at.kl
                at.kl = next_kl(cfg, at.kl, metrics["kl"] * row["tokens"])
            record(run, cfg, at, drawn, batch, row, stream.overlong)
            row |= {f"time/{p}": clock[p] - spent.get(p, 0.0) for p in ("sample", "score", "update")}
            row["time/step"] = time.perf_counter() - begin
            clock["rest"] = clock.get("rest", 0.0) + row["time/step"]
            clock["rest"] -= sum(row[f"time/{p}"] for p in ("sample", "score", "update"))
            run.log("metrics.jsonl", [row])

            at.bad = at.bad + 1 if metrics["skipped"] else 0
            if at.bad >= cfg.bad_steps:
                checkpoint()
                run.export(model, tokenizer)
                raise UserError(DIVERGED.format(at.bad, at.step, run.path / "final"))
            if cfg.probe_every and at.step % cfg.probe_every == 0 and not over():
                with clock("probe"):
                    measure("probe", cfg.probe_problems, 1)
            if at.step % cfg.save_every == 0 or over():
                with clock("save"):
                    checkpoint()
            bar.update(at.done(cfg) - bar.n)
            busy = ", the machine is busy" if cpu.watch.busy else ""
            shown = f"reward {row['reward']:.2f}, accuracy {row['accuracy']:.0%}, {row['tokens']:.0f} tokens"
            bar.set_postfix_str(shown + busy)
    if not over():
        checkpoint()
        print(f"Stopped after step {at.step} of {cfg.steps}; the checkpoint is whole. {again(cfg)}")
        return None
    print("evaluating the trained model on the same problems")
    with clock("eval_trained"):
        trained = measure("eval", cfg.eval_problems, cfg.eval_samples)
    run.export(model, tokenizer)
    clock["total"] += time.perf_counter() - started
    return finish(run, cfg, at.step, clock, trained)


# ---------------------------------------------------------------- command line


COMMANDS = sorted(path.stem for path in (HERE / "commands").glob("[!_]*.py"))


def usage() -> str:
    """The head of run.sh, where the presets and their needs are described."""
    lines = itertools.takewhile(
        lambda line: line.startswith("#"), (HERE / "run.sh").read_text().splitlines()[1:]
    )
    return "\n".join(line[2:] for line in lines)


def larger_preset() -> str:
    """One line: the largest preset that this machine's GPU could hold."""
    free = torch.cuda.mem_get_info()[0] / 1e9 if torch.cuda.is_available() else 0
    fits = [name for name, gb in GPU_GB.items() if 0 < gb <= free]
    if fits:
        return f"This machine's GPU could also run: bash run.sh {fits[-1]}"
    return "No GPU that holds a larger preset was found; bash run.sh --help says what each needs."


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    command, rest = argv[0], argv[1:]
    cpu.prepare()
    try:
        if command == "train":
            cfg, preset = parse(command, rest)
            knobs.check_gpu(cfg, preset, GPU_GB)
            if notice := knobs.lr_notice(cfg, PRESETS.get(preset, {}), rest):
                print(notice)
            if preset == "mini":
                print(larger_preset())
            return 0 if train(cfg, preset) else 130
        if command in COMMANDS:
            return importlib.import_module(f"commands.{command}").main(rest)
        near = difflib.get_close_matches(command, ["train", *COMMANDS], 1)
        raise UserError(
            f"Unknown command {command!r}.{f' Did you mean {near[0]}?' if near else ''} There are train, "
            f"{', '.join(COMMANDS)}."
        )
    except (UserError, tasks.TaskError) as error:
        print(f"tinyr1: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        advice = "Lower --micro_tokens, give --gradient_checkpointing True, or choose a smaller model"
        print(f"tinyr1: out of GPU memory ({str(error).split('.')[0]}). {advice}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntinyr1: stopped. The last checkpoint, if there is one, is whole.", file=sys.stderr)
        return 130
    finally:
        release_locks()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
