#!/usr/bin/env python3
"""tinyr1: watch a base language model learn to reason by reinforcement learning with verifiable rewards.

    python tinyr1.py train mini                        the miniature on Countdown, on two processor cores
    python tinyr1.py train 1.5b --lr 2e-6              a preset, with a knob of your own
    python tinyr1.py train --model DIR --task ./my_task.py --steps 50
    python tinyr1.py eval runs/mini                    pass@1, pass@k, cons@k of a run, or of any --model

One training step, top to bottom in `train`: collect (sample G answers to each of B questions with the
weights being trained), score (the task reads the text), advantage, update, log. What PPO has and this
leaves out: GRPO's advantage is the reward's z-score within the G answers to one question, so there is no
critic; with one update a rollout the policy is its own old policy and the ratio is 1, yet its gradient is
the policy gradient.

Shapes: B prompts a step, G samples a prompt, N = B*G rows, L padded length, T = L-1. Position t of any
(N,T) tensor speaks of the token ids[:, t+1]; the off-by-one happens once, in `token_logp`.
"""

import collections
import contextlib
import importlib
import inspect
import itertools
import json
import math
import numbers
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

import knobs
import rollout
import tasks
from models import load_model, pick_attention, pick_device, pick_precision, stop_ids
from plots.summary import show, table
from runfolder import HERE, Run, UserError, environment, write_atomically, write_json

# ---------------------------------------------------------------- configuration


def knob(default, help: str, choices=None):
    more = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**more, metadata={"help": help} | ({"choices": choices} if choices else {}))


@dataclass
class Config:
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
    algo: str = knob("grpo", "sets the defaults of the knobs of its row in ALGORITHMS", ["grpo", "drgrpo"])
    adv: str = knob("zscore", "advantage from the rewards of a group", ["zscore", "centred"])
    weight: str = knob("sequence", "how tokens are weighed in the loss", ["sequence", "token", "constant"])
    clip_low: float = knob(0.2, "the ratio is clipped at 1 - clip_low")
    clip_high: float = knob(0.2, "the ratio is clipped at 1 + clip_high")
    kl: float = knob(0.0, "coefficient of the KL penalty to the initial policy; 0 keeps no reference model")
    kl_estimator: str = knob("k3", "estimator of that KL", ["k1", "k2", "k3"])
    epochs: int = knob(1, "passes over the samples of a step")
    minibatches: int = knob(1, "optimizer steps a pass")
    is_cap: float = knob(
        0.0, "weigh tokens by min(trainer's / engine's probability, is_cap); 0 for no such correction"
    )
    drop_dead: bool = knob(
        False, "leave groups whose rewards are all equal out of the batch (and of its means)"
    )
    overlong: str = knob("keep", "samples cut at the cap: keep, mask the loss, or penalise softly before it",
                         ["keep", "mask", "penalise"])  # fmt: skip
    overlong_buffer: int = knob(64, "tokens before the cap over which the soft penalty grows from 0 to 1")
    # optimization
    steps: int = knob(60, "training steps")
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
    name: str = knob("", "folder under --out (default: the preset and the knobs you changed)")
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


ALGORITHMS = {
    "grpo": dict(
        adv="zscore", weight="sequence", clip_low=0.2, clip_high=0.2, kl=0.04, kl_estimator="k3"
    ),  # 2402.03300
    "drgrpo": dict(adv="centred", weight="constant", clip_low=0.2, clip_high=0.2, kl=0.0),  # 2503.20783
}

# TinyZero's figures for Countdown (its train_tiny_zero scripts); the group of 5 is its GRPO setting
TINYZERO = dict(
    task_args=["data=Jiayi-Pan/Countdown-Tasks-3to4", "wording=tinyzero", "reward=tinyzero"],
    template="tinyzero", prompts=256, group=5, minibatches=2, max_new_tokens=1024, lr=1e-6, warmup=0,
    kl=0.001, steps=200, eval_problems=512, eval_samples=1, probe_every=20, save_every=20, micro_tokens=16384,
    gradient_checkpointing=True,
)  # fmt: skip
PRESETS = {
    "mini": dict(
        task_args=["numbers=3", "high=13", "wording=short", "reward=binary"],
        kl=0.0,
        lr=4e-4,
        steps=70,
        schedule="cosine",
        max_new_tokens=512,
        overlong="penalise",
        overlong_buffer=128,
    ),  # fmt: skip
    "0.5b": dict(TINYZERO, model="Qwen/Qwen2.5-0.5B"),
    "1.5b": dict(TINYZERO, model="Qwen/Qwen2.5-1.5B"),
    "3b": dict(TINYZERO, model="Qwen/Qwen2.5-3B"),
}
GPU_GB = {
    "mini": 0,
    "0.5b": 22,
    "1.5b": 44,
    "3b": 78,
}  # fp32 weights, gradients, Adam, reference; activations


def parse(command: str, argv: list[str]) -> tuple[Config, str]:
    """(config, preset's name or "") of a command line. Errors: UserError."""
    return knobs.parse(Config, ALGORITHMS, PRESETS, command, argv)


# ---------------------------------------------------------------- problems


@dataclass
class Problem:
    """A task's example with its prompt."""

    example: dict
    prompt: str
    ids: list[int]


def problems(task, split: str, cfg: Config, tokenizer):
    """Iterator of Problem; train starts again when a finite source is used up. Errors: UserError,
    tasks.TaskError.
    """
    options = dict(o.split("=", 1) for o in cfg.task_args)
    takes = [*inspect.signature(task.examples).parameters, *getattr(task, "OPTIONS", ())]
    if "seed" in takes:  # the run's seed also draws the training problems
        options.setdefault("seed", cfg.seed)
    while True:
        count = 0
        try:
            examples = task.examples(split, **options)
        except TypeError as error:
            raise UserError(
                f"The task {cfg.task} does not take the options {cfg.task_args}: {error}."
            ) from error
        for example in examples:
            prompt = tasks.render(cfg.template, task.question(example), tokenizer)
            yield Problem(
                example, prompt, tokenizer(prompt, add_special_tokens=cfg.template != "chat").input_ids
            )
            count += 1
        if split == "test":
            return
        if not count:
            raise UserError(f"The task {cfg.task} has no training examples with the options {cfg.task_args}.")


def held_out(task, cfg: Config, tokenizer) -> list[Problem]:
    """The first eval_problems of the test split. Errors: UserError if there is none."""
    held = list(itertools.islice(problems(task, "test", cfg, tokenizer), cfg.eval_problems))
    if not held:
        raise UserError(f"The task {cfg.task} has no held-out problems with {' '.join(cfg.task_args)}.")
    return held


# ---------------------------------------------------------------- the objective


LOGITS = 2**25  # elements of a chunk of logits


def token_logp(model, ids: torch.Tensor, mask: torch.Tensor, temperature: float):
    """Log-probability (n,T) of every completion token ids[:, t+1] under the model, and the entropy (n,T)
    there; 0 elsewhere.

    ids (n,L) right-padded, mask (n,T). Right padding needs no attention mask, because attention is causal.
    The vocabulary dimension exists here only, for completion tokens only, and in chunks that the backward
    pass recomputes.
    """
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][
        mask
    ]  # (M,H) of the M tokens
    chosen = ids[:, 1:][mask]  # (M,)
    head = model.get_output_embeddings()

    def chunk(hidden, chosen):
        logits = head(hidden).float() / temperature  # (m,V)
        logZ = logits.logsumexp(-1)  # (m,)
        logp = logits.gather(-1, chosen[:, None])[:, 0] - logZ
        with torch.no_grad():
            entropy = logZ - (torch.softmax(logits, -1) * logits).sum(-1)
        return logp, entropy

    size = max(1, LOGITS // head.weight.shape[0])
    if len(chosen) <= size:
        parts = [chunk(hidden, chosen)]
    else:
        pairs = zip(hidden.split(size), chosen.split(size))
        parts = [
            recompute(chunk, h, c, use_reentrant=False) if torch.is_grad_enabled() else chunk(h, c)
            for h, c in pairs
        ]
    logp, entropy = (torch.cat(x) for x in zip(*parts))
    full = torch.zeros(mask.shape, dtype=logp.dtype, device=logp.device)
    return full.masked_scatter(mask, logp), full.masked_scatter(mask, entropy)


ADVANTAGE = {  # reward (B,G) -> advantage (B,G)
    "zscore": lambda reward: (
        (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
    ),  # 2402.03300, 4.1.2
    "centred": lambda reward: reward - reward.mean(1, keepdim=True),  # Dr. GRPO, 2503.20783
}

WEIGHTS = {  # mask (N,T), max_new_tokens -> weight (N,T) of the optimizer batch: micro-batches just add up
    "sequence": lambda mask, cap: (
        mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)
    ),  # 1/N sum 1/|o|: 2402.03300, eq. 3
    "token": lambda mask, cap: mask / mask.sum().clamp(min=1),  # DAPO, 2503.14476, eq. 8
    "constant": lambda mask, cap: mask / (len(mask) * cap),  # Dr. GRPO: a constant in the place of the length
}

KL = {  # log(policy/reference) -> estimate of KL(policy || reference), joschu.net/blog/kl-approx.html
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: torch.exp(-d) - 1 + d,
}


def policy_loss(logp, old_logp, adv, weight, cfg: Config, ref_logp=None):
    """The clipped surrogate plus the KL penalty, summed under `weight`; all (n,T). Returns the loss and
    metric sums.

    GRPO, 2402.03300, eq. 3: min(ratio*adv, clip(ratio)*adv) - kl * KL(policy || reference).
    """
    ratio = torch.exp(logp - old_logp)
    clipped = ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high)
    objective = torch.minimum(ratio * adv, clipped * adv)
    sums = {"clip_frac": ((clipped != ratio) & (clipped * adv < ratio * adv)).float()}
    if ref_logp is not None:
        sums["kl"] = KL[cfg.kl_estimator](logp - ref_logp)
        objective = objective - cfg.kl * sums["kl"]
    return -(objective * weight).sum(), sums


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
            seed=seed, pad_id=tokenizer.pad_token_id or 0, dtype=sampling_dtype(model, cfg),
        )  # fmt: skip
    except ValueError as error:  # a prompt that does not fit
        raise UserError(f"Cannot sample: {error}.") from error
    rows = [ids[:-1] if ids[-1] in eos_ids else ids for ids in roll.completions()]
    return roll, tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def sampling_dtype(model, cfg: Config) -> torch.dtype:
    """bf16 on a GPU, where decoding is bound by memory; fp32 on a CPU, where the gap to the trainer is not
    worth it.
    """
    return torch.bfloat16 if model.device.type == "cuda" and cfg.precision == "bf16" else torch.float32


def score(task, batch: list[Problem], texts: list[str], G: int) -> list[dict]:
    """The task's verdict on each text. A verifier that fails is counted in `verifier_error` and rewards 0."""
    results = []
    for i, text in enumerate(texts):
        try:
            result = task.reward(text, batch[i // G].example)
            checked = {"reward": float(result["reward"]), "correct": bool(result["correct"])}
            results.append({"verifier_error": 0.0, **result, **checked})
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            results.append({"verifier_error": 1.0, "reward": 0.0, "correct": False, "error": message})
    return results


def summarise(results: list[dict], roll: rollout.Rollout) -> dict:
    """Means over the samples: of every numeric key a task reports (where present), and of lengths by
    outcome.
    """
    length, finished = roll.length.float().cpu(), roll.finished.cpu()
    correct = torch.tensor([r["correct"] for r in results])
    keys = dict.fromkeys(
        k for r in results for k, v in r.items() if isinstance(v, numbers.Number) and k != "correct"
    )
    m = {k: float(np.mean([r[k] for r in results if k in r])) for k in keys}
    m |= {
        "accuracy": correct.float().mean().item(),
        "tokens": length.mean().item(),
        "tokens_max": length.max().item(),
    }
    m["cut_share"] = (~finished).float().mean().item()
    for name, rows in (("correct", correct), ("wrong", ~correct & finished), ("cut", ~finished)):
        if rows.any():
            m[f"tokens_{name}"] = length[rows].mean().item()
    return m


def micro_batches(rows: torch.Tensor, total: torch.Tensor, budget: int):
    """Split row indices into length-sorted groups of at most `budget` padded tokens: (rows, padded length),
    longest first.
    """
    rows = rows[total[rows].argsort(descending=True, stable=True)]
    while len(rows):
        width = min(-(-int(total[rows[0]]) // 8) * 8, int(total.max()))
        yield rows[: max(1, budget // width)], width
        rows = rows[max(1, budget // width) :]


def update(model, ref, optimizer, roll: rollout.Rollout, adv, keep, counted, cfg: Config, step: int) -> dict:
    """`epochs` x `minibatches` optimizer steps on the rows of a rollout. All (N,): adv, keep (False: the
    row's tokens get no loss), counted (False: the row is left out of the batch and its means). Gives metrics.

    Rows whose advantage is 0 have no gradient without a KL penalty: they count in the loss's means but are
    not computed, so entropy, clip_frac, kl and rollout_kl are means over the tokens of the other rows.
    A NaN or infinite gradient never reaches the weights: the step is skipped and counted.
    """
    mask_all, total = roll.mask, roll.prompt_len + roll.length
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.precision == "bf16")
    shuffle = torch.Generator().manual_seed(cfg.seed * 1_000_003 + step)
    batch = torch.nonzero(counted)[:, 0]

    def score_rows(network, rows, width):
        with autocast:
            return token_logp(network, roll.ids[rows, :width], mask_all[rows, : width - 1], cfg.temperature)

    def stored(network):  # (N,T) log-probabilities under fixed weights
        out = torch.zeros_like(roll.logp)
        with torch.no_grad():
            for rows, width in micro_batches(batch, total, cfg.micro_tokens):
                out[rows, : width - 1] = score_rows(network, rows, width)[0].to(out.dtype)
        return out

    model.train()
    ref_logp = stored(ref) if ref is not None else None
    many = cfg.epochs * cfg.minibatches > 1
    old_logp = stored(model) if many else None
    orders = (
        batch[torch.randperm(len(batch), generator=shuffle).to(batch.device)] for _ in range(cfg.epochs)
    )
    sums, count, norms, losses, skipped = {}, 0, [], [], 0
    for part in (part for order in orders for part in order.chunk(cfg.minibatches)):
        weight = torch.zeros_like(roll.logp)  # (N,T)
        weight[part] = WEIGHTS[cfg.weight]((mask_all[part] & keep[part, None]).float(), cfg.max_new_tokens)
        live, loss_sum = part if cfg.kl else part[adv[part] != 0], 0.0
        for rows, width in micro_batches(live, total, cfg.micro_tokens):
            at = (rows, slice(width - 1))  # (n,T) of the (N,T) tensors
            logp, entropy = score_rows(model, rows, width)
            old = old_logp[at] if many else logp.detach()
            reference = ref_logp[at] if ref is not None else None
            token_adv = adv[rows, None].expand_as(logp)
            if (
                cfg.is_cap
            ):  # the engine's rounding makes its samples off-policy: fengyao.notion.site/off-policy-rl
                token_adv = token_adv * torch.exp(old - roll.logp[at]).clamp(max=cfg.is_cap)
            loss, parts = policy_loss(logp, old, token_adv, weight[at], cfg, reference)
            loss.backward()
            loss_sum += loss.item()
            parts |= {"entropy": entropy, "rollout_kl": roll.logp[at] - old}
            for name, x in parts.items():
                sums[name] = sums.get(name, 0.0) + (x.detach() * mask_all[at]).sum().item()
            count += int(mask_all[at].sum())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip).item()
        if math.isfinite(norm) and math.isfinite(loss_sum):
            optimizer.step()
            norms.append(norm), losses.append(loss_sum)
        else:
            skipped += 1
        optimizer.zero_grad(set_to_none=True)
    metrics = {name: value / max(count, 1) for name, value in sums.items()}
    metrics |= {"loss": float(np.mean(losses)), "grad_norm": float(np.mean(norms))} if norms else {}
    return metrics | {"skipped": skipped, "updated_tokens": count}


def lr_at(step: int, cfg: Config) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up, then constant or a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / (cfg.warmup + 1))
    if cfg.schedule == "cosine":
        progress = max(0.0, (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup))
        warm *= 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))
    return cfg.lr * warm


# ---------------------------------------------------------------- evaluation


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from c right ones of n (Codex, 2107.03374, eq. 1)."""
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers: list, correct: list[bool]) -> float:
    """Chance that a majority vote over the answers is right (cons@n of DeepSeek-R1): ties share it, no
    answer has no vote.
    """
    votes = {}
    for answer, right in zip(answers, correct):
        if answer is not None:
            n, ok = votes.get(str(answer), (0, False))
            votes[str(answer)] = (n + 1, ok or right)
    top = [ok for n, ok in votes.values() if n == max(n for n, _ in votes.values())]
    return sum(top) / len(top) if top else 0.0


def interval(per_problem: np.ndarray, draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of the mean over problems; the resampling is seeded."""
    picks = np.random.default_rng(0).integers(0, len(per_problem), (draws, len(per_problem)))
    return [float(x) for x in np.quantile(per_problem[picks].mean(1), (0.025, 0.975))]


def evaluate(model, tokenizer, task, held: list[Problem], k: int, cfg: Config, seed: int = 12345):
    """k samples of every problem: metrics (accuracy is pass@1 = mean over samples) and one record a
    sample.
    """
    roll, texts = collect(model, tokenizer, held, k, cfg, seed)
    results = score(task, held, texts, k)
    metrics = summarise(results, roll)
    right = np.array([r["correct"] for r in results]).reshape(len(held), k)
    answers = [r.get("answer", tasks.extract_answer(t)) for r, t in zip(results, texts)]
    metrics["accuracy_ci"] = interval(right.mean(1))
    metrics["n"] = right.size
    metrics["problems"] = len(held)
    for j in sorted({2**i for i in range(k.bit_length())} | {k}):
        metrics[f"pass@{j}"] = float(np.mean([pass_at_k(k, int(c), j) for c in right.sum(1)]))
    votes = [majority(answers[i * k : (i + 1) * k], right[i].tolist()) for i in range(len(held))]
    metrics[f"cons@{k}"] = float(np.mean(votes))
    return metrics, sample_records(held, texts, results, roll, k)


def sample_records(batch, texts, results, roll, G) -> list[dict]:
    lengths, finished = roll.length.tolist(), roll.finished.tolist()
    return [
        {"example": batch[i // G].example, "prompt": batch[i // G].prompt, "completion": text,
         "tokens": lengths[i], "finished": finished[i], **results[i]}
        for i, text in enumerate(texts)
    ]  # fmt: skip


# ---------------------------------------------------------------- train

KEEP_HELD_OUT, KEEP_ERRORS = (
    64,
    8,
)  # samples that samples.jsonl keeps of an evaluation, and failed verdicts of a step


class Interrupt:
    """The first Ctrl-C lets the step finish and saves; the second one stops at once."""

    def __enter__(self):
        self.asked = False
        self.before = [(s, signal.signal(s, self.ask)) for s in (signal.SIGINT, signal.SIGTERM)]
        return self

    def ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write(
            "\nstopping after this step, then saving (Ctrl-C again stops at once; the last checkpoint stays)"
        )

    def __exit__(self, *_):
        for s, handler in self.before:
            signal.signal(s, handler)


def again(cfg: Config) -> str:
    return f"The same command{' without --overwrite' if cfg.overwrite else ''} goes on from it."


class Clock(dict):
    """Seconds by phase: `with clock("sample"): ...`."""

    @contextlib.contextmanager
    def __call__(self, phase: str):
        begin = time.perf_counter()
        yield
        self[phase] = self.get(phase, 0.0) + time.perf_counter() - begin


def train(cfg: Config) -> dict | None:
    """Train, evaluate before and after, leave everything in the run folder.

    Returns the summary, None if interrupted.
    """
    clock, started = Clock(), time.perf_counter()
    task, run = tasks.load(cfg.task), Run(cfg)  # a run that is resumed keeps its device and precision
    device = pick_device(cfg.device)
    torch.manual_seed(cfg.seed)
    cfg.device, cfg.precision = device.type, pick_precision(cfg.precision, device)
    with clock("load"):
        model, tokenizer = load_model(cfg.model, device, 22 if cfg.kl else 16)
        ref = load_model(cfg.model, device, 4)[0].requires_grad_(False) if cfg.kl else None
    stream, held = problems(task, "train", cfg, tokenizer), held_out(task, cfg, tokenizer)
    pick_attention(model, cfg.precision)
    if cfg.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    fused = device.type == "cuda"  # no temporaries as large as the model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=cfg.weight_decay, fused=fused
    )
    step, bad, sampled, state = 0, 0, 0, run.begin(cfg)
    if state:
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        step, bad, sampled, clock = state["step"], state["bad"], state["sampled"], Clock(state["clock"])
        collections.deque(itertools.islice(stream, step * cfg.prompts), maxlen=0)  # the data cursor
        print(f"resuming {run.path} after step {step} of {cfg.steps}")
    resumed, state = state is not None, None

    def checkpoint():
        nonlocal started
        clock["total"] = clock.get("total", 0.0) + time.perf_counter() - started
        started = time.perf_counter()
        weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        run.save({"step": step, "bad": bad, "sampled": sampled, "clock": dict(clock), **weights})

    def measure(label: str, count: int, k: int) -> list[dict]:
        metrics, records = evaluate(model, tokenizer, task, held[:count], k, cfg)
        run.log("metrics.jsonl", [{"step": step, **{f"{label}/{name}": v for name, v in metrics.items()}}])
        shown = records[: KEEP_HELD_OUT * k : k]  # the same problems at every evaluation
        run.log(
            "samples.jsonl", [{"step": step, "split": "test", "problem": i, **r} for i, r in enumerate(shown)]
        )
        return records

    if not resumed:
        print(f"evaluating the base model on {len(held)} held-out problems, {cfg.eval_samples} samples each")
        with clock("eval_base"):
            measure("eval", cfg.eval_problems, cfg.eval_samples)
        checkpoint()
    bar = tqdm(total=cfg.steps, initial=step, desc="train", unit="step", dynamic_ncols=True, smoothing=0.1)
    with Interrupt() as interrupt:
        while step < cfg.steps and not interrupt.asked:
            begin, spent = time.perf_counter(), dict(clock)
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, cfg)
            batch = list(itertools.islice(stream, cfg.prompts))
            with clock("sample"):
                roll, texts = collect(model, tokenizer, batch, cfg.group, cfg, (cfg.seed << 32) + step)
            with clock("score"):
                results = score(task, batch, texts, cfg.group)
            reward = torch.tensor([r["reward"] for r in results], dtype=torch.float32, device=device)  # (N,)
            reward, keep = overlong(cfg, reward, roll.length, roll.finished)
            reward = reward.view(cfg.prompts, cfg.group)  # (B,G)
            # equal rewards carry no signal, though rounding could make their mean differ from them
            dead = (reward == reward[:, :1]).all(1, keepdim=True).expand_as(reward)  # (B,G)
            adv = ADVANTAGE[cfg.adv](reward).masked_fill(dead, 0.0).flatten()  # (N,)
            counted = ~dead.flatten() if cfg.drop_dead else torch.ones_like(keep)  # (N,)
            with clock("update"):
                metrics = update(model, ref, optimizer, roll, adv, keep, counted, cfg, step)

            step, sampled = step + 1, sampled + int(roll.length.sum())
            row = {"step": step, **summarise(results, roll), **metrics, "lr": lr_at(step - 1, cfg)}
            row |= {"reward_shaped": reward.mean().item(), "reward_std": reward.std(1).mean().item()}
            row |= {"dead_groups": dead.float().mean().item(), "sampled_tokens": sampled}
            row |= {f"time/{p}": clock[p] - spent.get(p, 0.0) for p in ("sample", "score", "update")}
            records = sample_records(batch, texts, results, roll, cfg.group)
            random = np.random.default_rng((cfg.seed, step))
            shown = random.choice(len(texts), min(cfg.keep_samples, len(texts)), replace=False)
            errors = [r for r in records if r["verifier_error"]][:KEEP_ERRORS]
            kept = [records[i] for i in shown] + errors
            run.log("samples.jsonl", [{"step": step, "split": "train", **r} for r in kept])
            row["time/step"] = time.perf_counter() - begin
            clock["rest"] = clock.get("rest", 0.0) + row["time/step"]
            clock["rest"] -= sum(row[f"time/{p}"] for p in ("sample", "score", "update"))
            run.log("metrics.jsonl", [row])

            bad = bad + 1 if metrics["skipped"] else 0
            if bad >= cfg.bad_steps:
                checkpoint()
                run.export(model, tokenizer)
                raise UserError(
                    f"The gradient was NaN or infinite in {bad} steps in a row, so training stopped at step "
                    f"{step}. The weights are still good: they are in {run.path / 'final'}. Lower --lr, or "
                    "try --precision fp32, under another --name."
                )
            if cfg.probe_every and step % cfg.probe_every == 0 and step < cfg.steps:
                with clock("probe"):
                    measure("probe", cfg.probe_problems, 1)
            if step % cfg.save_every == 0 or step == cfg.steps:
                with clock("save"):
                    checkpoint()
            bar.update()
            bar.set_postfix_str(
                f"reward {row['reward']:.2f}, accuracy {row['accuracy']:.0%}, {row['tokens']:.0f} tokens"
            )
    bar.close()
    if step < cfg.steps:
        checkpoint()
        print(f"Stopped after step {step} of {cfg.steps}; the checkpoint is whole. {again(cfg)}")
        return None
    print("evaluating the trained model on the same problems")
    with clock("eval_trained"):
        trained = measure("eval", cfg.eval_problems, cfg.eval_samples)
    run.export(model, tokenizer)
    clock["total"] += time.perf_counter() - started
    return finish(run, cfg, clock, trained)


# ---------------------------------------------------------------- the end of a run


SUMMARY = "accuracy accuracy_ci tokens attempts attempts_within_search search_share cut_share n".split()


def finish(run: Run, cfg: Config, clock: dict, trained: list[dict]) -> dict:
    """Write summary.json, draw the plots, print the table and one problem answered before and after."""
    evals = [row for row in run.rows("metrics.jsonl") if "eval/accuracy" in row]
    sides = [
        {k.removeprefix("eval/"): v for k, v in row.items() if k != "step"} for row in (evals[0], evals[-1])
    ]
    keys = dict.fromkeys([*SUMMARY, *(k for side in sides for k in side)])
    base, after = (
        {k: side.get(k) for k in keys} for side in sides
    )  # a key that one side lacks is null there
    summary = {"base": base, "trained": after, "steps": cfg.steps}
    if after.get("attempts") is not None:
        record = (HERE / "minibase" if cfg.model == "minibase" else Path(cfg.model)) / "record.json"
        longest = {k: max(r.get(k, 0) for r in trained) for k in ("attempts", "tokens")}
        summary["longest"] = {"trained": longest}
        if record.exists():
            summary["longest"]["pretraining"] = json.loads(record.read_text())["longest_search"]
    draw = time.perf_counter()
    drawn = subprocess.run(
        [sys.executable, HERE / "plots" / "curves.py", run.path], capture_output=True, text=True
    )
    clock |= {"plots": time.perf_counter() - draw, "total": clock["total"] + time.perf_counter() - draw}
    summary["seconds"] = {k: round(v, 2) for k, v in clock.items()}
    write_json(run.path / "summary.json", summary)
    show(run.path)
    print(
        f"{cfg.steps} steps in {clock['total'] / 60:.1f} minutes. Run folder: {run.path}; "
        f"the trained model: {run.path / 'final'}"
    )
    print(
        f"Plots: {', '.join(map(str, sorted((run.path / 'plots').glob('*.png'))))}"
        if drawn.returncode == 0
        else drawn.stderr.strip()
    )
    return summary


# ---------------------------------------------------------------- command line


def run_eval(cfg: Config) -> dict:
    """Evaluate a model; the figures and every sample go to <out>/<name>/eval.json and eval_samples.jsonl."""
    device = pick_device(cfg.device)
    task = tasks.load(cfg.task)
    cfg.device, cfg.precision = device.type, pick_precision(cfg.precision, device)
    model, tokenizer = load_model(cfg.model, device, 6)
    held = held_out(task, cfg, tokenizer)
    folder = Path(cfg.out) / f"eval-{cfg.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error}. Choose another place with --out FOLDER.") from error
    metrics, records = evaluate(model, tokenizer, task, held, cfg.eval_samples, cfg)
    write_json(
        folder / "eval.json", {"config": asdict(cfg), "metrics": metrics, "environment": environment()}
    )
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_atomically(folder / "eval_samples.jsonl", lambda file: file.write(lines.encode()))
    print(
        f"{cfg.model} on {len(held)} problems of {cfg.task}, {cfg.eval_samples} samples each\n"
        f"{table(metrics)}\nwritten to {folder}"
    )
    return metrics


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
    rollout.keep_memory()
    try:
        if command == "train":
            cfg, preset = parse(command, rest)
            if preset == "mini":
                print(larger_preset())
            return 0 if train(cfg) else 130
        if command == "eval":
            run_eval(parse(command, rest)[0])
            return 0
        if command in COMMANDS:
            return importlib.import_module(f"commands.{command}").main(rest)
        raise UserError(
            f"Unknown command {command!r}: there are train, eval, {', '.join(COMMANDS)}.\n{usage()}"
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
