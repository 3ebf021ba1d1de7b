"""The loop around a training step: resume, learning rate, clock, log, checkpoints, evaluation, the end.

    with Loop(...) as loop:
        for step in loop:       # sets the learning rate; afterwards evaluates and saves
            ...
            loop.log(metrics, samples)
        return loop.finish()

It knows no algorithm: what it evaluates with is a function that it is given.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from plots.summary import show
from runtime import cpu
from runtime.digests import model_folder
from runtime.learner import Learner, weights_are_finite
from runtime.metrics import remarks
from runtime.models import peak_gb
from runtime.problems import Problems
from runtime.runfolder import Clock, Interrupt, Run, UserError, write_json

# problems of an evaluation of which samples.jsonl keeps one sample
KEEP_HELD_OUT = 64
# failed verdicts of a step that it keeps
KEEP_ERRORS = 8
# of a step, in the clock
PHASES = ("sample", "score", "update")
Evaluate = Callable[[int, int], tuple[dict, list[dict]]]

DIVERGED = (
    "The gradient was NaN or infinite in {} steps in a row, so training stopped at step {}. Such gradients "
    "never reach the weights, which are finite, but an earlier step may have spoiled them: they are in {}. "
    "Lower --lr, or try --precision fp32, under another --name."
)
SPOILED = (
    "Weights have become NaN or infinite at step {} or before, so training stopped and wrote no model. The "
    "last checkpoint stays as it was, in {}. Lower --lr, or try --precision fp32, under another --name."
)


@dataclass
class State:
    """How far a run is. A checkpoint holds it beside the weights and the seconds."""

    kl_coef: float  # --kl_target moves it
    step: int = 0  # steps done: the step that runs is number `step` in seeds, and `step` + 1 in the logs
    skipped_in_a_row: int = 0  # steps with a gradient that was not finite
    sampled: int = 0  # tokens
    drawn: int = 0  # prompts: the data cursor
    best_step: int = 0  # of the best small evaluation; 0: none yet
    best_accuracy: float = -1.0


def lr_at(step: int, cfg: Any, sampled: int = 0) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up, then constant or a cosine down to a tenth at the last
    step, or where the sampled tokens reach the budget.
    """
    share = min(1.0, (step + 1) / (cfg.warmup + 1))
    if cfg.schedule == "cosine":
        progress = max(0.0, (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup))
        progress = max(progress, sampled / cfg.token_budget if cfg.token_budget else 0.0)
        share *= 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))
    return cfg.lr * share


def steer_kl(state: State, cfg: Any, metrics: dict[str, float]) -> dict[str, float]:
    """Move the KL coefficient towards --kl_target nats per response: Ziegler et al., 1909.08593."""
    if not cfg.kl_target or "kl" not in metrics:
        return {}
    used, measured = state.kl_coef, metrics["kl"] * metrics["tokens"]
    error = (measured - cfg.kl_target) / cfg.kl_target
    state.kl_coef = used * (1 + 0.1 * min(0.2, max(-0.2, error)))
    return {"kl_coefficient": used}


class Loop:
    """Steps of a run, from its last checkpoint to its end or to Ctrl-C.

    data: the training problems. aux: what learns beside the policy. evaluate(count, k): metrics and records
    of k samples for the first `count` held-out problems. about: facts for config.json.
    """

    def __init__(
        self,
        cfg: Any,
        run: Run,
        clock: Clock,
        data: Problems,
        learner: Learner,
        aux: Any,
        tokenizer: Any,
        evaluate: Evaluate,
        about: dict[str, Any],
    ):
        self.cfg, self.run, self.clock, self.data = cfg, run, clock, data
        self.learner, self.aux, self.tokenizer, self.evaluate = learner, aux, tokenizer, evaluate
        self.state = State(cfg.kl)
        self.interrupt = Interrupt()
        self.start_or_resume(run.begin(cfg, about))

    def start_or_resume(self, saved: dict | None) -> None:
        """Load a checkpoint; without one, evaluate the base model and write the first."""
        cfg, state = self.cfg, self.state
        if saved is None:
            print(f"evaluating the base model on held-out problems, samples per problem: {cfg.eval_samples}")
            with self.clock("eval_base"):
                self.log_evaluation("eval", cfg.eval_problems, cfg.eval_samples)
            self.save()
        else:
            self.learner.load_state_dict(saved)
            self.aux.load_state_dict(saved["aux"])
            self.state = state = State(**{name: saved[name] for name in asdict(state) if name in saved})
            self.clock.update(saved["clock"])
            # the data cursor
            for _ in itertools.islice(self.data, state.drawn):
                pass
            print(f"resuming {self.run.path} after step {state.step} of {cfg.steps}")

    def __enter__(self) -> "Loop":
        total, unit = (
            (self.cfg.token_budget, " tokens") if self.cfg.token_budget else (self.cfg.steps, "step")
        )
        self.bar = tqdm(
            total=total,
            initial=self.units_done(),
            desc="train",
            unit=unit,
            dynamic_ncols=True,
            smoothing=0.1,
            unit_scale=self.cfg.token_budget > 0,
        )
        self.interrupt.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        self.interrupt.__exit__(*error)

    def units_done(self) -> int:
        """Of the token budget, or without one of the steps."""
        return self.state.sampled if self.cfg.token_budget else self.state.step

    def is_finished(self) -> bool:
        return (
            self.state.step >= self.cfg.steps
            or 0 < self.cfg.token_budget <= self.state.sampled
            or 0 < self.cfg.stop_accuracy <= self.state.best_accuracy
        )

    def __iter__(self) -> Iterator[int]:
        """The number of each step, from 0; evaluates, saves and moves the bar after that step."""
        while not self.is_finished() and not self.interrupt.asked:
            self.began, self.spent = time.perf_counter(), dict(self.clock)
            self.lr = lr_at(self.state.step, self.cfg, self.state.sampled)
            self.learner.set_lr(self.lr)
            yield self.state.step
            self.after_step()

    # ------------------------------------------------------------ what is written

    def log(self, metrics: dict[str, float], samples: Any) -> None:
        """Count the step, move the data cursor, and write its row and some of its samples."""
        state = self.state
        state.step += 1
        state.sampled += int(samples.rollout.length.sum())
        state.drawn += len(samples.problems)
        skipped = sum(learner.take_skipped() for learner in (self.learner, *self.aux.learners))
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
        row = {"step": state.step, **metrics, "skipped": skipped, "lr": self.lr}
        row["sampled_tokens"] = state.sampled
        if self.data.overlong:
            row["overlong_prompts"] = self.data.overlong
        self.log_samples(samples.records)
        row |= {f"time/{p}": self.clock[p] - self.spent.get(p, 0.0) for p in PHASES}
        row["time/step"] = time.perf_counter() - self.began
        rest = row["time/step"] - sum(row[f"time/{p}"] for p in PHASES)
        self.clock["rest"] = self.clock.get("rest", 0.0) + rest
        self.run.log("metrics.jsonl", [row])
        self.row = row

    def log_samples(self, records: list[dict]) -> None:
        """Some of a step's samples: random ones, and some whose verdicts failed."""
        random = np.random.default_rng((self.cfg.seed, self.state.step))
        shown = random.choice(len(records), min(self.cfg.keep_samples, len(records)), replace=False)
        kept = [records[i] for i in shown] + [r for r in records if r["verifier_error"]][:KEEP_ERRORS]
        self.run.log("samples.jsonl", [{"step": self.state.step, "split": "train", **r} for r in kept])

    def log_evaluation(self, label: str, count: int, k: int) -> tuple[dict, list[dict]]:
        """Evaluate, write the row and all samples, and let the report show them: metrics and records."""
        metrics, records = self.evaluate(count, k)
        step = self.state.step
        row = {"step": step, **{f"{label}/{name}": value for name, value in metrics.items()}}
        self.run.log("metrics.jsonl", [row])
        head = {"step": step, "split": "test"}
        every = [head | {"problem": i // k, "sample": i % k} | r for i, r in enumerate(records)]
        self.run.log("eval_samples.jsonl", every)
        # the same problems at every evaluation
        self.run.log("samples.jsonl", every[: KEEP_HELD_OUT * k : k])
        self.run.pictures.refresh()
        return metrics, records

    def save(self) -> None:
        """Write a checkpoint. Errors: UserError for weights that are not finite: the last one stays."""
        if not all(weights_are_finite(learner.module) for learner in (self.learner, *self.aux.learners)):
            raise UserError(SPOILED.format(self.state.step, self.run.checkpoints))
        self.clock.lap()
        weights = self.learner.state_dict() | {"aux": self.aux.state_dict()}
        self.run.save(asdict(self.state) | {"clock": dict(self.clock)} | weights)

    # ------------------------------------------------------------ after a step, and at the end

    def after_step(self) -> None:
        """Stop on bad gradients, evaluate, save, and move the bar."""
        cfg, state, row = self.cfg, self.state, self.row
        if state.skipped_in_a_row >= cfg.bad_steps:
            self.save()
            self.run.export(self.learner.module.model, self.tokenizer)
            raise UserError(DIVERGED.format(state.skipped_in_a_row, state.step, self.run.path / "final"))
        if cfg.probe_every and state.step % cfg.probe_every == 0 and not self.is_finished():
            self.probe()
        if state.step % cfg.save_every == 0 or self.is_finished():
            with self.clock("save"):
                self.save()
        self.bar.update(self.units_done() - self.bar.n)
        shown = f"reward {row['reward']:.2f}, accuracy {row['accuracy']:.0%}, {row['tokens']:.0f} tokens"
        self.bar.set_postfix_str(shown + (", the machine is busy" if cpu.watch.busy else ""))

    def probe(self) -> None:
        """The small evaluation. The model with the best accuracy so far is kept in best/."""
        with self.clock("probe"):
            metrics, _ = self.log_evaluation("probe", self.cfg.probe_problems, 1)
        if metrics["accuracy"] > self.state.best_accuracy:
            self.state.best_step, self.state.best_accuracy = self.state.step, metrics["accuracy"]
            with self.clock("save"):
                self.run.export(self.learner.module.model, self.tokenizer, "best")

    def finish(self) -> dict | None:
        """Evaluate and export the trained model, write and print the summary. None if interrupted."""
        cfg, run, state = self.cfg, self.run, self.state
        self.bar.close()
        if not self.is_finished():
            self.save()
            again = f"The same command{' without --overwrite' if cfg.overwrite else ''} resumes it."
            print(f"Stopped after step {state.step} of {cfg.steps}; the checkpoint is whole. {again}")
            return None
        print("evaluating the trained model on the same problems")
        with self.clock("eval_trained"):
            _, trained = self.log_evaluation("eval", cfg.eval_problems, cfg.eval_samples)
        run.export(self.learner.module.model, self.tokenizer)
        self.clock.lap()
        summary = self.summarise(trained)
        # which tells the report that the run has finished
        write_json(run.path / "summary.json", summary)
        drawn = run.pictures.finish()
        self.clock["plots"] = self.clock.lap()
        summary["seconds"] = {name: round(value, 2) for name, value in self.clock.items()}
        write_json(run.path / "summary.json", summary)
        show(run.path)
        print(
            f"{state.step} steps in {self.clock['total'] / 60:.1f} minutes. Run folder: {run.path}; the "
            f"trained model: {run.path / 'final'}\n{drawn}"
        )
        for remark in summary["remarks"]:
            print(f"Note: {remark}.")
        return summary

    def summarise(self, trained: list[dict]) -> dict:
        """summary.json: the first and the last evaluation, and what the closing lines must not hide."""
        rows = self.run.rows("metrics.jsonl")
        evals = [row for row in rows if "eval/accuracy" in row]
        base, after = (
            {name.removeprefix("eval/"): value for name, value in row.items() if name != "step"}
            for row in (evals[0], evals[-1])
        )
        # a key that one side lacks is null there
        keys = dict.fromkeys([*SUMMARY, *base, *after])
        summary: dict[str, Any] = {
            "base": {key: base.get(key) for key in keys},
            "trained": {key: after.get(key) for key in keys},
            "steps": self.state.step,
            "peak_gb": peak_gb(self.cfg.device),
        }
        if after.get("attempts") is not None:
            summary["longest"] = {"trained": {key: longest(trained, key) for key in ("attempts", "tokens")}}
            record = model_folder(self.cfg.model) / "record.json"
            if Path(record).exists():
                summary["longest"]["pretraining"] = json.loads(record.read_text())["longest_search"]
        return summary | {"remarks": remarks(rows)}


SUMMARY = "accuracy accuracy_ci tokens attempts attempts_within_search search_share cut_share n".split()


def longest(records: list[dict], key: str) -> float:
    return max(r[key] for r in records if isinstance(r.get(key), (int, float)))
