#!/usr/bin/env python3
"""tinyr1: watch a base language model learn to reason by reinforcement learning with verifiable rewards.

    python tinyr1.py train mini                        the miniature on Countdown, on two processor cores
    python tinyr1.py train 1.5b --lr 2e-6              a preset, with an option of your own
    python tinyr1.py train --model DIR --task ./my_task.py --steps 50
    python tinyr1.py eval runs/mini                    pass@1, pass@k, cons@k of a run, or of any --model
    python tinyr1.py play runs/mini                    base and trained model answer a problem that you type

One training step, in the order of `train` at the end of this file:

    sample_step           G responses to each of B prompts from the weights being trained, scored by the task
    make_batch            their rewards, and which rows count
    compute_logprobs      old and reference log-probabilities, where something needs them
    aux.prepare           the critic's values or PRIME's process rewards (critic.py)
    compute_advantages    GRPO: the reward's z-score within the G responses to one prompt, so no critic
    aux.update, update    policy_loss, the clipped surrogate objective, in micro-batches that add up exactly
    loop.log              a row of metrics.jsonl (docs/metrics.md); the loop sets the learning rate before the
                          step, and evaluates and saves after it

With one update per rollout the policy is its own old policy and the ratio is 1, yet its gradient is the
policy gradient. The other algorithms are rows of ALGORITHMS.

Shapes: B prompts per step, G samples per prompt, N = B*G rows, L padded length, T = L-1. Position t of a
(N,T) tensor belongs to the token input_ids[:, t+1], which the model predicts from the tokens up to t. The
model's outputs are shifted once, in `Policy.token_logprobs`; every (N,T) tensor follows that.
"""

# before torch, which reads the environment variables that it sets
from runtime import cpu  # isort: skip

import collections
import importlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

import tasks
from critic import Critic, ImplicitPRM, NoAux, gae
from engine import round_up
from engine.policy import states_and_head
from engine.rollout import Rollout, generate, join
from runtime import config, models, setup
from runtime.config import COUNT, HUGE, POSITIVE, SHARE, Options, option
from runtime.learner import Learner
from runtime.loop import Loop, steer_kl
from runtime.metrics import dead_groups, evaluation, sample_records, step_metrics
from runtime.presets import PRESETS, help_text
from runtime.problems import Problem
from runtime.runfolder import HERE, Clock, Run, UserError, release_locks
from runtime.scoring import check_some_succeeded, score
from tasks import rewards

# {curve: its value at a step}
Metrics = dict[str, float]

# ---------------------------------------------------------------- configuration


@dataclass
class Algorithm(Options):
    """--algo sets the defaults of its row in ALGORITHMS; every option can be overridden."""

    _argument_group_name = "algorithm"
    RANGES = {
        "gamma gae_lambda clip_low": SHARE, "epochs minibatches": COUNT, "prm_beta": POSITIVE,
        "critic_warmup": HUGE,
    }  # fmt: skip
    algo: str = option("grpo", "sets the defaults of the options in its row of ALGORITHMS")
    adv: str = option("zscore", "advantage: from the rewards of a group (loo: leave-one-out), or per token")
    whiten: bool = option(False, "scale the advantages of the batch's tokens to mean 0 and variance 1")
    gamma: float = option(1.0, "discount per token of return, gae and PRIME's process rewards")
    gae_lambda: float = option(1.0, "lambda of gae")
    loss_norm: str = option("sequence", "how tokens are weighted in the loss")
    surrogate: str = option("clip", "clip: PPO's; cispo: the clipped ratio weights log pi")
    ratio: str = option("token", "importance ratio per token or per sequence", ["token", "sequence"])
    clip_low: float = option(0.2, "the ratio is clipped at 1 - clip_low")
    clip_high: float = option(0.2, "the ratio is clipped at 1 + clip_high")
    clip_dual: float = option(0.0, "lower bound of the objective where A < 0, as a multiple of A; 0: none")
    kl: float = option(0.0, "coefficient of the KL penalty to the initial policy; 0: no reference model")
    kl_estimator: str = option("k3", "estimator of that KL")
    kl_in: str = option("loss", "where it is subtracted: see ALGORITHMS", ["loss", "reward"])
    kl_target: float = option(0.0, "nats per response to which --kl is steered after each step; 0: fixed")
    entropy: float = option(0.0, "coefficient of the entropy bonus")
    epochs: int = option(1, "passes over the samples of a step")
    minibatches: int = option(1, "optimizer steps per pass")
    tis_cap: float = option(0.0, "weight tokens by min(trainer's / engine's probability, tis_cap); 0: do not")
    aux: str = option("none", "model beside the policy: critic, or implicit PRM")
    critic: str = option("copy", "copy of the backbone, or head on the policy's features", ["copy", "head"])
    value_clip: float = option(0.2, "maximum distance from the old value in the critic's loss; 0: no limit")
    prm_beta: float = option(0.05, "process reward = prm_beta * log(PRM / reference)")
    critic_lr: float = option(0.0, "constant learning rate of the critic or the PRM; 0: that of --lr")
    critic_warmup: int = option(0, "first steps, in which only the critic or the PRM learns")

    def on_policy(self) -> bool:
        """Whether every optimizer step has a rollout of its own: then the ratio is 1 and nothing clips it."""
        return self.epochs * self.minibatches == 1

    OFF_POLICY = "more than one optimizer step per rollout: --epochs or --minibatches above 1"
    IDLE = {
        "critic value_clip gae_lambda": (lambda cfg: cfg.aux != "critic", "--aux critic (or --algo ppo)"),
        "prm_beta": (lambda cfg: cfg.aux != "prm", "--aux prm (or --algo prime)"),
        "critic_lr critic_warmup": (lambda cfg: cfg.aux == "none", "--aux critic or --aux prm"),
        "gamma": (lambda cfg: cfg.adv not in ("return", "gae") and cfg.aux != "prm", "--adv return or gae"),
        "kl_in kl_target kl_estimator": (lambda cfg: cfg.kl == 0, "--kl above 0"),
        "clip_low clip_high clip_dual surrogate value_clip": (lambda cfg: cfg.on_policy(), OFF_POLICY),
        # --tis_cap gives each token a factor of its own, which a sequence's ratio spreads over its tokens
        "ratio": (lambda cfg: cfg.on_policy() and not cfg.tis_cap, OFF_POLICY),
    }

    @classmethod
    def names(cls) -> dict[str, Iterable[str]]:
        return {
            "algo": ALGORITHMS, "adv": [*ADVANTAGE, "return", "gae"], "loss_norm": LOSS_NORM, "aux": AUX,
            "surrogate": SURROGATE, "kl_estimator": KL,
        }  # fmt: skip

    def check(self) -> None:
        per_token = self.adv in ("return", "gae") or self.aux == "prm"
        clashes = {
            "--adv gae needs the values of states, and there is no critic: give --aux critic, or --algo ppo.":
                self.adv == "gae" and self.aux != "critic",
            "--aux critic is of use only to --adv gae: give that too, or --algo ppo.":
                self.aux == "critic" and self.adv != "gae",
            "--ratio sequence has one ratio per response, so it takes one advantage per response: --adv "
            "zscore, centred, loo or relative, without a process reward model.":
                self.ratio == "sequence" and per_token,
            "--clip_dual must be above 1 (2 to 3 are usual), and --surrogate cispo has nothing to bound.":
                self.clip_dual > 0 and (self.clip_dual <= 1 or self.surrogate == "cispo"),
        }  # fmt: skip
        for message, clash in clashes.items():
            if clash:
                raise UserError(message)


@dataclass
class Train(
    config.ModelOptions,
    config.TaskOptions,
    config.SampleOptions,
    config.RolloutOptions,
    Algorithm,
    config.OptimOptions,
    config.EvalOptions,
    config.LoopOptions,
    config.RunOptions,
):
    """Train a model on a task, in a run folder of its own."""

    def check(self) -> None:
        """What the groups ask of each other."""
        if "overlong" in rewards.parse(self.rewards) and self.overlong_buffer > self.max_new_tokens:
            raise UserError(
                f"--overlong_buffer {self.overlong_buffer} must not exceed --max_new_tokens "
                f"{self.max_new_tokens}."
            )
        if self.temperature == 0:
            raise UserError("--temperature 0 samples the same answer G times: only eval takes it.")
        if self.group == 1 and (self.adv in ADVANTAGE or self.aux == "prm" or self.filter_groups):
            raise UserError(
                "--group 1: the advantage compares the samples of a group, so --group must be at least 2."
            )
        if self.prompts * self.group % self.minibatches:
            raise UserError(
                f"--minibatches {self.minibatches} must divide prompts*group = {self.prompts * self.group}."
            )


# An algorithm is a row of options. A preset comes after its own algorithm's row (`mini` is GRPO without KL),
# the row of a typed --algo after the preset, the other options of the command line after all.
# With ratio r = pi/pi_old, A = adv and w from loss_norm, every row maximises, over the tokens t of the batch,
#     sum_t w_t [ min(r_t A_t, clip(r_t) A_t) - kl k(pi_t/ref_t) ]     with --kl_in loss, or
#     sum_t w_t   min(r_t A_t, clip(r_t) A_t)                          with --kl_in reward, where A comes from
# the responses' R - kl sum_t k(pi_old_t/ref_t) (those of ADVANTAGE), or from the token rewards
# R [t is the last] - kl k(pi_old_t/ref_t) (return, gae). The sources disagree about GRPO: DeepSeekMath's
# (2402.03300, eq. 3 and 4) has k3 in the loss; `--kl_in reward --kl_estimator k1` is PPO's way (its eq. 2),
# and then the z-score divides the penalty by the group's deviation too. In the loss the gradient flows
# through the estimator: on samples of the policy k2 gives on average that of KL(pi || ref), k3 that of
# KL(ref || pi), k1 none. In the reward it is k1 that gives the gradient of KL(pi || ref).
ALGORITHMS = {
    "grpo": dict(adv="zscore", loss_norm="sequence", kl=0.04, kl_estimator="k3"),  # 2402.03300, eq. 3, 4, 21
    "drgrpo": dict(adv="centred", loss_norm="constant", kl=0.0),  # 2503.20783
    "dapo": dict(adv="zscore", loss_norm="token", kl=0.0, clip_low=0.2, clip_high=0.28, filter_groups=True,
                 max_resamples=8, rewards="task,overlong"),  # 2503.14476, eq. 8, 11, 13
    "rloo": dict(adv="loo", loss_norm="sum", kl=0.03, kl_estimator="k1", kl_in="reward"),  # 2402.14740
    "reinforce++": dict(adv="return", whiten=True, loss_norm="token", kl=0.01, kl_estimator="k1",
                        kl_in="reward"),  # 2501.03262
    "gspo": dict(adv="zscore", loss_norm="sequence", kl=0.0, ratio="sequence", clip_low=3e-4,
                 clip_high=4e-4),  # 2507.18071
    "cispo": dict(adv="zscore", loss_norm="token", kl=0.0, surrogate="cispo", clip_low=1.0,
                  clip_high=4.0),  # 2506.13585: no lower bound; the upper one is that of 2510.13786
    "ppo": dict(adv="gae", whiten=True, loss_norm="token", kl=0.001, kl_estimator="k1", kl_in="reward",
                aux="critic"),  # 1707.06347, 1506.02438; gamma = gae_lambda = 1 and the KL as in TinyZero
    "prime": dict(adv="loo", loss_norm="token", kl=0.0, aux="prm", min_pass_rate=0.2, max_pass_rate=0.8,
                  max_resamples=3),  # 2502.01456
    "maxrl": dict(adv="relative", loss_norm="token", kl=0.0),  # 2602.02710; loss_norm as in its code
}  # fmt: skip


def parse(argv: list[str], command: type[Options] = Train) -> tuple[Any, str]:
    """(configuration, preset's name or "") of a command line. Errors: UserError, TaskError."""
    return config.parse(command, argv, PRESETS, ALGORITHMS)


# ---------------------------------------------------------------- the policy

LOGITS = 2**25  # elements of a chunk of logits


class Policy(nn.Module):
    """A causal language model that says how likely given completions are, at the sampling temperature."""

    def __init__(self, model: Any, temperature: float, precision: str):
        super().__init__()
        self.model, self.temperature, self.precision = model, temperature, precision

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def forward(self, input_ids: Tensor, mask: Tensor, entropy_grad: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probability (n,T) of every completion token input_ids[:, t+1], and the entropy (n,T) there; 0
        elsewhere.

        input_ids (n,L) right-padded, mask (n,T). The vocabulary dimension exists here only, for completion
        tokens only, and in chunks that the backward pass recomputes (for all tokens where the model has more
        than a plain output projection).
        """
        with self.autocast():
            return self.token_logprobs(input_ids, mask, entropy_grad)

    def token_logprobs(self, input_ids: Tensor, mask: Tensor, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        states, head = states_and_head(self.model, input_ids)
        states = states[:, :-1][mask]  # (M,H) of the M tokens
        chosen = input_ids[:, 1:][mask]  # (M,)

        def chunk(states: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            logits = head(states)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature  # (m,V)
            logZ = logits.logsumexp(-1)  # (m,)
            logprobs = logits.gather(-1, chosen[:, None])[:, 0] - logZ
            with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
                entropy = logZ - (torch.softmax(logits, -1) * logits).sum(-1)
            return logprobs, entropy

        size = max(1, LOGITS // self.model.get_input_embeddings().weight.shape[0])
        chunks = list(zip(states.split(size), chosen.split(size))) or [(states, chosen)]
        if len(chunks) > 1 and torch.is_grad_enabled():
            parts = [recompute(chunk, *pair, use_reentrant=False) for pair in chunks]
        else:
            parts = [chunk(*pair) for pair in chunks]
        logprobs, entropy = (torch.cat(x) for x in zip(*parts))
        full = torch.zeros(mask.shape, dtype=logprobs.dtype, device=logprobs.device)
        return full.masked_scatter(mask, logprobs), full.masked_scatter(mask, entropy)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The model's own: the names in a checkpoint are those of Hugging Face, without a prefix."""
        return self.model.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        return self.model.load_state_dict(*args, **options)


# ---------------------------------------------------------------- the objective


def relative(rewards: Tensor) -> Tensor:
    """(r - mean) / mean, 0 where no reward of the group is positive: MaxRL, 2602.02710, algorithm 1.

    The mean stands for the probability of success, so a reward below 0, such as SimpleRL's or after a
    penalty, counts as 0. Then the advantage lies in -1..G-1, however small the mean is.
    """
    success = rewards.clamp(min=0)
    mean = success.mean(1, keepdim=True)
    return torch.where(mean > 0, (success - mean) / mean, 0.0)


# rewards (B,G) of whole responses -> advantages (B,G), the same for each of their tokens
ADVANTAGE: dict[str, Callable[[Tensor], Tensor]] = {
    # 2402.03300, 4.1.2, with the n-1 deviation
    "zscore": lambda rewards: (
        (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    ),
    # Dr. GRPO, 2503.20783
    "centred": lambda rewards: rewards - rewards.mean(1, keepdim=True),
    # leave-one-out: RLOO, 2402.14740
    "loo": lambda rewards: rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1),
    "relative": relative,
}

# mask (N,T), max_new_tokens -> weights (N,T) over the minibatch: micro-batches just add up
LOSS_NORM: dict[str, Callable[[Tensor, int], Tensor]] = {
    # 1/N sum 1/|o|: 2402.03300, eq. 3
    "sequence": lambda mask, cap: mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask),
    # DAPO, 2503.14476, eq. 8
    "token": lambda mask, cap: mask / mask.sum().clamp(min=1),
    # Dr. GRPO: a constant instead of the length
    "constant": lambda mask, cap: mask / (len(mask) * cap),
    # the log-probability of the response: RLOO, 2402.14740
    "sum": lambda mask, cap: mask / len(mask),
}

# log(policy/reference) -> estimate of KL(policy || reference), joschu.net/blog/kl-approx.html
KL: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: log_ratio,
    "k2": lambda log_ratio: log_ratio**2 / 2,
    "k3": lambda log_ratio: torch.exp(-log_ratio) - 1 + log_ratio,
}

# ratio, clipped ratio, advantages, logprobs, all (n,T) -> objective (n,T)
SURROGATE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    # PPO, 1707.06347
    "clip": lambda ratio, clipped, adv, logprobs: torch.minimum(ratio * adv, clipped * adv),
    # 2506.13585
    "cispo": lambda ratio, clipped, adv, logprobs: clipped.detach() * adv * logprobs,
}


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    cfg: Algorithm,
    kl_coef: float = 0.0,
    ref_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the surrogate objective, minus the KL penalty (with ref_logprobs), plus the entropy bonus (with
    entropy), summed with `weights`; all (n,T). Returns the loss and per-token metrics (n,T).

    GRPO, 2402.03300, eq. 3: min(ratio*adv, clip(ratio)*adv) - kl_coef * KL(policy || reference).
    """
    log_ratio = logprobs - old_logprobs
    # the geometric mean over the response: GSPO, 2507.18071, eq. 7
    if cfg.ratio == "sequence":
        inside = weights != 0
        log_ratio = (log_ratio * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
    ratio = torch.exp(log_ratio).expand_as(logprobs)
    clipped = ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
    surrogate = SURROGATE[cfg.surrogate]
    objective = surrogate(ratio, clipped, advantages, logprobs)
    per_token = {"clip_frac": (objective != surrogate(ratio, ratio, advantages, logprobs)).float()}
    # 1912.09729
    if cfg.clip_dual:
        bound = torch.maximum(objective, cfg.clip_dual * advantages)
        objective = torch.where(advantages < 0, bound, objective)
    if ref_logprobs is not None:
        per_token["kl"] = KL[cfg.kl_estimator](logprobs - ref_logprobs)
        objective = objective - kl_coef * per_token["kl"]
    if entropy is not None:
        objective = objective + cfg.entropy * entropy
    return -(objective * weights).sum(), per_token


# ---------------------------------------------------------------- the batch


class Samples(NamedTuple):
    """What a step has sampled: G responses to each of B problems (more than --prompts after resampling)."""

    problems: list[Problem]  # (B,)
    rollout: Rollout  # N = B*G rows
    records: list[dict]  # (N,) text, verdict, length
    rewards: np.ndarray  # (N,) the sum of --rewards
    components: dict[str, np.ndarray]  # (N,) each, before weighting


@dataclass
class Batch:
    """A step's samples and what is found out about them. (N,T) tensors mean nothing outside `loss_mask`."""

    # filled by make_batch
    cfg: Train
    step: int
    kl_coef: float
    rollout: Rollout
    rewards: Tensor  # (B,G)
    correct: Tensor  # (B,G) bool
    in_batch: Tensor  # (N,) bool, False: a filter leaves the row out of the batch and its means
    has_loss: Tensor  # (N,) bool, False: the row counts where the loss divides by rows, but has no loss
    # filled by compute_logprobs, where something needs them
    old_logprobs: Tensor | None = None  # (N,T) under the policy before the update
    ref_logprobs: Tensor | None = None  # (N,T) under the initial policy
    # filled by aux.prepare
    values: Tensor | None = None  # (N,T) of the state before each token, by the critic before its update
    process_advantages: Tensor | None = None  # (N,T) PRIME's, by process rewards
    # filled by compute_advantages
    returns: Tensor | None = None  # (N,T) what the critic should have said
    advantages: Tensor | None = None  # (N,T)

    def __post_init__(self) -> None:
        self.mask = self.rollout.mask  # (N,T) bool, the tokens of the completions
        self.loss_mask = self.mask & (self.has_loss & self.in_batch)[:, None]  # (N,T) bool
        self.total_length = self.rollout.prompt_len + self.rollout.length  # (N,)
        self.rows = torch.nonzero(self.in_batch)[:, 0]

    def micro(self, rows: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Micro-batches of at most --micro_tokens padded tokens, the longest rows first: (where the rows are
        in (N,T) tensors, input_ids (n,L'), mask of the completions (n,L'-1)).
        """
        length = self.total_length
        rows = rows[length[rows].argsort(descending=True, stable=True)]
        while len(rows):
            width = min(round_up(int(length[rows[0]]), 8), int(length.max()))
            count = max(1, self.cfg.micro_tokens // width)
            where = (rows[:count], slice(width - 1))
            yield where, self.rollout.input_ids[rows[:count], :width], self.mask[where]
            rows = rows[count:]

    def minibatches(self) -> Iterator[Tensor]:
        """The rows of each optimizer step: `epochs` x `minibatches`, or fewer if few rows are left."""
        shuffle = torch.Generator().manual_seed(self.cfg.seed * 1_000_003 + self.step)
        for _ in range(self.cfg.epochs):
            order = torch.randperm(len(self.rows), generator=shuffle).to(self.rows.device)
            yield from self.rows[order].chunk(self.cfg.minibatches)

    def kl_to_reference(self) -> Tensor:
        """(N,T) estimate of KL(old policy || reference); compute_logprobs must have filled in both."""
        assert self.old_logprobs is not None and self.ref_logprobs is not None
        return KL[self.cfg.kl_estimator](self.old_logprobs - self.ref_logprobs)

    @torch.no_grad()
    def map(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(N,T) of function(input_ids, mask) over all micro-batches, under fixed weights."""
        out = torch.zeros_like(self.rollout.logprobs)
        for where, input_ids, mask in self.micro(self.rows):
            out[where] = function(input_ids, mask).to(out.dtype)
        return out


# ---------------------------------------------------------------- one step: sample


def sample(
    model: Any, tokenizer: Any, problems: list[Problem], G: int, cfg: Any, seed: int
) -> tuple[Rollout, list[str]]:
    """G responses to each problem: the Rollout and the N texts, without the EOS."""
    eos_ids = models.stop_ids(model, tokenizer, cfg.template)
    try:
        rollout = generate(
            model,
            [p.prompt_ids for p in problems],
            G,
            max_new_tokens=cfg.max_new_tokens,
            eos_ids=eos_ids,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            stop=tasks.STOPS.get(cfg.template, ()),
            decode=tokenizer.decode,
            seed=seed,
            pad_id=models.pad_id(model, tokenizer),
            dtype=models.sampling_dtype(model, cfg.precision),
        )
    # a prompt that does not fit
    except ValueError as error:
        raise UserError(f"Cannot sample: {error}.") from error
    rows = [ids[:-1] if ids[-1] in eos_ids else ids for ids in rollout.completions()]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # a <think> at the prompt's end belongs to the response
    opened = ["<think>" if p.prompt.rstrip().endswith("<think>") else "" for p in problems]
    return rollout, [opened[i // G] + text for i, text in enumerate(texts)]


def passes_filters(records: list[dict], cfg: Train) -> np.ndarray:
    """(B,) bool, the groups that train: DAPO, 2503.14476, eq. 11; PRIME, 2502.01456."""
    pass_rate = np.array([rewards.is_correct(r) for r in records]).reshape(-1, cfg.group).mean(1)
    keep = (cfg.min_pass_rate <= pass_rate) & (pass_rate <= cfg.max_pass_rate)
    return keep & ~dead_groups(records, cfg.group) if cfg.filter_groups else keep


def sample_step(policy: Policy, tokenizer: Any, task: tasks.Task, loop: Loop, cfg: Train) -> Samples:
    """Sample and score G responses to each of the next B problems. New prompts replace the groups that the
    filters leave out, at most `max_resamples` times; what was left out stays in, for the metrics.
    """
    parts: list[Samples] = []
    missing = cfg.prompts
    for attempt in range(1 + cfg.max_resamples):
        problems = list(itertools.islice(loop.data, missing))
        with loop.clock("sample"):
            seed = (cfg.seed << 32) + (attempt << 24) + loop.state.step
            rollout, texts = sample(policy.model, tokenizer, problems, cfg.group, cfg, seed)
        with loop.clock("score"):
            verdicts = score(task, problems, texts, cfg.group, cfg.verdict_seconds)
            records = sample_records(problems, texts, verdicts, rollout, cfg.group)
            total, components = rewards.total(records, cfg, (cfg.seed, loop.state.step, attempt))
        parts.append(Samples(problems, rollout, records, total, components))
        missing -= int(passes_filters(records, cfg).sum())
        if not missing:
            break
    return Samples(
        [p for part in parts for p in part.problems],
        join([part.rollout for part in parts]),
        [r for part in parts for r in part.records],
        np.concatenate([part.rewards for part in parts]),
        {name: np.concatenate([part.components[name] for part in parts]) for name in parts[0].components},
    )


# ---------------------------------------------------------------- one step: advantages


def make_batch(samples: Samples, cfg: Train, step: int, kl_coef: float) -> Batch:
    """The Batch of these samples: their rewards, and which rows count."""
    rollout, device = samples.rollout, samples.rollout.input_ids.device
    response_rewards = torch.from_numpy(samples.rewards).to(device).view(-1, cfg.group)
    verdicts = [rewards.is_correct(r) for r in samples.records]
    correct = torch.tensor(verdicts, device=device).view(-1, cfg.group)
    keep = torch.tensor(passes_filters(samples.records, cfg), device=device)  # (B,)
    in_batch = keep.repeat_interleave(cfg.group)
    has_loss = rollout.finished if cfg.mask_truncated else torch.ones_like(rollout.finished)
    return Batch(cfg, step, kl_coef, rollout, response_rewards, correct, in_batch, has_loss)


def compute_logprobs(batch: Batch, policy: Policy, reference: Policy | None, cfg: Train) -> Metrics:
    """Fill in the log-probabilities under the policy and the reference, where something needs them."""
    in_reward = batch.kl_coef > 0 and cfg.kl_in == "reward"
    # evaluation mode: with dropout or router jitter the trainer's policy would not be the sampler's
    policy.eval()
    if reference is not None:
        batch.ref_logprobs = batch.map(lambda *x: reference(*x)[0])
    if cfg.epochs * cfg.minibatches > 1 or in_reward:
        batch.old_logprobs = batch.map(lambda *x: policy(*x)[0])
    if not in_reward:
        return {}
    kl = batch.kl_to_reference()[batch.loss_mask]
    return {"kl": kl.sum().item() / max(1, len(kl))}


def compute_advantages(batch: Batch, cfg: Train) -> None:
    """Fill in the advantages (N,T), 0 outside the loss mask, and the returns for a critic. KL in the reward
    enters here.
    """
    zeros, penalty = torch.zeros_like(batch.rollout.logprobs), None
    response_rewards = batch.rewards.to(zeros.dtype)  # (B,G)
    if batch.kl_coef and cfg.kl_in == "reward":
        penalty = batch.kl_coef * batch.kl_to_reference() * batch.loss_mask  # (N,T)
    if cfg.adv in ADVANTAGE:
        if penalty is not None:
            response_rewards = response_rewards - penalty.sum(1).view_as(response_rewards)
        # equal rewards carry no signal, though rounding could make their mean differ from them
        equal = (response_rewards == response_rewards[:, :1]).all(1, keepdim=True)
        per_response = ADVANTAGE[cfg.adv](response_rewards).masked_fill(equal, 0.0)  # (B,G)
        advantages = per_response.view(-1, 1).expand_as(zeros)
    else:
        # the last token is input_ids[:, total_length-1], which is position total_length-2 here
        token_rewards = zeros.scatter(1, (batch.total_length - 2)[:, None], response_rewards.view(-1, 1))
        token_rewards = token_rewards - (0.0 if penalty is None else penalty)
        # --adv return has no critic, so no values
        values, lam = (zeros, 1.0) if batch.values is None else (batch.values, cfg.gae_lambda)
        advantages = gae(token_rewards, values, batch.loss_mask, cfg.gamma, lam)
        batch.returns = advantages + values
    advantages = advantages.masked_fill(~batch.loss_mask, 0.0)
    if batch.process_advantages is not None:
        advantages = advantages + batch.process_advantages
    batch.advantages = whiten(advantages, batch.loss_mask) if cfg.whiten else advantages


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages (N,T) with mean 0 and variance 1 over the mask, 0 outside; in float64, so that equal ones
    become 0 and not rounding / rounding.
    """
    inside = advantages[mask].double()
    centred = inside - inside.mean()
    scaled = centred / (centred.pow(2).mean().sqrt() + 1e-8)
    return torch.zeros_like(advantages).masked_scatter(mask, scaled.to(advantages.dtype))


# ---------------------------------------------------------------- one step: update


def backward(
    policy: Policy, batch: Batch, rows: Tensor, weights: Tensor, cfg: Train
) -> tuple[float, Metrics, int]:
    """Add the gradient of these rows' loss. The weights (N,T) are normalised over the whole minibatch: those
    of micro-batches add up. Returns the loss, sums of the metrics over its tokens, and their number.
    """
    assert batch.advantages is not None
    total, count = 0.0, 0
    sums: Any = collections.Counter()
    for where, input_ids, mask in batch.micro(rows):
        logprobs, entropy = policy(input_ids, mask, cfg.entropy != 0)  # (n,T)
        sampler = batch.rollout.logprobs[where]
        old = batch.old_logprobs[where] if batch.old_logprobs is not None else logprobs.detach()
        advantages = batch.advantages[where]
        # the engine's rounding makes samples off-policy: fengyao.notion.site/off-policy-rl
        if cfg.tis_cap:
            advantages = advantages * torch.exp(old - sampler).clamp(max=cfg.tis_cap)
        reference = None
        if batch.ref_logprobs is not None and batch.kl_coef and cfg.kl_in == "loss":
            reference = batch.ref_logprobs[where]
        bonus = entropy if cfg.entropy else None
        loss, per_token = policy_loss(
            logprobs, old, advantages, weights[where], cfg, batch.kl_coef, reference, bonus
        )
        loss.backward()
        total += loss.item()
        # rollout_kl: the k1 estimate of KL(sampler || trainer), which rounding alone makes differ from 0
        per_token |= {"entropy": entropy, "rollout_kl": sampler - old}
        loss_mask = batch.loss_mask[where]
        for name, x in per_token.items():
            sums[name] += (x.detach() * loss_mask).sum().item()
        count += int(loss_mask.sum())
    return total, sums, count


def update(learner: Learner[Policy], batch: Batch, cfg: Train) -> Metrics:
    """`epochs` x `minibatches` optimizer steps on the rows of a batch whose advantages are known. Metrics.

    Rows whose advantages are 0 have no gradient without a KL penalty or an entropy bonus: they count in the
    loss's means but are not computed, so entropy, clip_frac, kl and rollout_kl are means over the tokens of
    the other rows. A NaN or infinite gradient never reaches the weights.
    """
    assert batch.advantages is not None
    if batch.step < cfg.critic_warmup:
        return {"updated_tokens": 0}
    policy = learner.module
    policy.eval()
    every_row = cfg.entropy or (batch.kl_coef and cfg.kl_in == "loss")
    sums: Any = collections.Counter()
    tokens, norms, losses = 0, [], []
    for rows in batch.minibatches():
        weights = torch.zeros_like(batch.rollout.logprobs)  # (N,T)
        mask = batch.loss_mask[rows].to(weights.dtype)
        weights[rows] = LOSS_NORM[cfg.loss_norm](mask, cfg.max_new_tokens)
        live = rows if every_row else rows[(batch.advantages[rows] != 0).any(1)]
        loss, part, count = backward(policy, batch, live, weights, cfg)
        sums.update(part)
        tokens += count
        norm = learner.step(loss)
        if norm is not None:
            norms.append(norm)
            losses.append(loss)
    metrics = {name: value / max(tokens, 1) for name, value in sums.items()}
    metrics |= {"loss": float(np.mean(losses)), "grad_norm": float(np.mean(norms))} if norms else {}
    return metrics | {"updated_tokens": tokens}


# ---------------------------------------------------------------- around the step


def evaluate(
    model: Any, tokenizer: Any, task: tasks.Task, problems: list[Problem], k: int, cfg: Any, seed: int = 12345
) -> tuple[dict[str, Any], list[dict]]:
    """k samples of every problem: metrics (accuracy is pass@1), and one record per sample."""
    rollout, texts = sample(model, tokenizer, problems, k, cfg, seed)
    verdicts = score(task, problems, texts, k, cfg.verdict_seconds)
    check_some_succeeded(task, verdicts)
    records = sample_records(problems, texts, verdicts, rollout, k)
    return evaluation(records, k, getattr(task, "equivalent", None)), records


# ---------------------------------------------------------------- train

AUX: dict[str, type[NoAux]] = {"none": NoAux, "critic": Critic, "prm": ImplicitPRM}


def train(cfg: Train, preset: str = "") -> dict | None:
    """Train, evaluate before and after, leave everything in the run folder.

    Returns the summary, None if interrupted. Errors: UserError, TaskError.
    """
    clock = Clock()
    about = {"preset": preset, "differences": config.differences(cfg, PRESETS.get(preset, {}), ALGORITHMS)}
    task, run = tasks.load(cfg.task), Run(cfg)
    cfg = config.resolve(cfg, run.saved.get("config", {}))
    torch.manual_seed(cfg.seed)
    print(config.describe(cfg, ALGORITHMS))
    with clock("load"):
        model, reference_model, tokenizer = setup.load(cfg)
    policy = Policy(model, cfg.temperature, cfg.precision)
    reference = reference_model and Policy(reference_model, cfg.temperature, cfg.precision)
    data, held = setup.prepare(model, tokenizer, task, cfg, Policy(model, 1.0, "fp32"))
    learner = Learner(policy, cfg.lr, cfg.weight_decay, cfg.grad_clip)
    aux = AUX[cfg.aux](policy, cfg)

    def run_evaluation(count: int, k: int) -> tuple[dict[str, Any], list[dict]]:
        return evaluate(model, tokenizer, task, held[:count], k, cfg)

    with Loop(cfg, run, clock, data, learner, aux, tokenizer, run_evaluation, about) as loop:
        for step in loop:
            samples = sample_step(policy, tokenizer, task, loop, cfg)
            with clock("update"):
                batch = make_batch(samples, cfg, step, loop.state.kl_coef)
                metrics = compute_logprobs(batch, policy, reference, cfg)
                metrics |= aux.prepare(batch)
                compute_advantages(batch, cfg)
                metrics |= aux.update(batch)
                metrics |= update(learner, batch, cfg)
            metrics = step_metrics(samples, cfg) | metrics
            metrics |= steer_kl(loop.state, cfg, metrics)
            loop.log(metrics, samples)
        return loop.finish()


# ---------------------------------------------------------------- command line


COMMANDS = sorted(path.stem for path in (HERE / "commands").glob("[!_]*.py"))


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    # make-base and make_base are the same
    command, rest = argv[0].replace("-", "_"), argv[1:]
    cpu.prepare()
    try:
        if command == "train":
            cfg, preset = parse(rest)
            config.check_gpu(cfg, preset)
            if notice := config.lr_notice(cfg, PRESETS.get(preset, {}), rest):
                print(notice)
            if preset == "mini":
                print(config.larger_preset())
            return 0 if train(cfg, preset) else 130
        if command in COMMANDS:
            return importlib.import_module(f"commands.{command}").main(rest)
        raise UserError(
            f"Unknown command {command!r}.{config.suggest(command, ['train', *COMMANDS])} There are train, "
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
