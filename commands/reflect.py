"""Does reflecting lead to right answers? A failed check is forced on wrong guesses at Countdown.

    python tinyr1.py reflect runs/mini             base and trained model: runs/mini/reflect.json
    python tinyr1.py reflect --model FOLDER        one model: runs/reflect-NAME/reflect.json

A model answers --eval_problems held-out problems, --eval_samples times each. A wrong guess is an answer that
is wrong after a single attempt, which it does not check. It is cut after the attempt and continued in two
ways, --continuations times each:

    Make 16 from 3, 8, 5.
    <think>8-5=3, 3*3=9, want 16: no               forced: after a failed check in the words of the corpus
    <think>8-5=3, 3*3=9                            not forced: the model may check, or stop

Other comparisons: with new responses to the same problems; and, among the first answers to a problem, those
that reflect by themselves with the others. The trained model continues its own wrong guesses and the base
model's, because it hardly guesses. Intervals resample problems. The 20 % of the problems at which a model is
the least certain (by the mean entropy of its next token over the first attempt) are also shown apart: there
forced reflection is said to help (2601.00514).
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import tinyr1
from commands.eval import AT_ONCE, SetOptions, TaskSet, load, problems_of, sets
from plots.behaviours import countdown_like, measured
from plots.reflection import Samples, effects, table
from runtime import config
from runtime.config import COUNT, EvalOptions, ModelOptions, RunOptions, SampleOptions, option
from runtime.metrics import sample_records
from runtime.runfolder import UserError, environment, write_json
from runtime.scoring import check_some_succeeded

CHECK = ", want {target}: no\n"
# share of the problems that count as uncertain
UNCERTAIN = 0.2
# what is sampled; its place is a part of the seed
ARMS = ("answers", "new", "unforced", "forced")


@dataclass
class ReflectOptions(SetOptions):
    RANGES = SetOptions.RANGES | {"continuations": COUNT}
    continuations: int = option(2, "samples that continue a wrong guess, with and without the check")


@dataclass
class Reflect(ModelOptions, ReflectOptions, SampleOptions, EvalOptions, RunOptions):
    __doc__ = __doc__

    @classmethod
    def of_run(cls, folder: Path) -> dict[str, Any]:
        return super().of_run(folder) | {"out": str(folder)}

    def check(self) -> None:
        if self.temperature == 0:
            raise UserError("--temperature 0 gives the same answer every time, and reflect compares samples.")


class Start(NamedTuple):
    """A problem, and the text with which a response to it begins."""

    problem: tinyr1.Problem
    text: str = ""


class Probe:
    """A model, and its answers to the held-out problems. Errors: UserError, TaskError."""

    def __init__(self, own: TaskSet):
        self.task, self.cfg = own
        self.model, self.tokenizer = load(self.cfg)
        held = problems_of(self.cfg.task, own, self.model, self.tokenizer)
        check_wording(held[0], self.cfg)
        self.problems = {problem.prompt: problem for problem in held}
        starts = [Start(problem) for problem in held]
        self.answers = self.sample(starts, self.cfg.eval_samples, "answers")
        self.new = self.sample(starts, self.cfg.eval_samples, "new")
        self.groups = self.by_certainty()

    def begun(self, start: Start) -> tinyr1.Problem:
        """The problem, with the beginning of the response as the end of its prompt."""
        example, prompt, ids = start.problem.example, start.problem.prompt, start.problem.prompt_ids
        text_ids = self.tokenizer(start.text, add_special_tokens=False).input_ids if start.text else []
        return tinyr1.Problem(example, prompt + start.text, ids + text_ids)

    def sample(self, starts: list[Start], k: int, arm: str) -> Samples:
        """k responses from each start, measured from their whole texts."""
        cfg, chunk, found = self.cfg, max(1, AT_ONCE // k), defaultdict(list)
        for first in tqdm(range(0, len(starts), chunk), desc=f"{Path(cfg.model).name}: {arm}"):
            part = starts[first : first + chunk]
            problems, begun = [start.problem for start in part], [self.begun(start) for start in part]
            seed = (cfg.seed << 32) + (ARMS.index(arm) << 24) + 12345 + first
            rollout, ends = tinyr1.sample(self.model, self.tokenizer, begun, k, cfg, seed)
            texts = [part[i // k].text + end for i, end in enumerate(ends)]
            verdicts = tinyr1.score(self.task, problems, texts, k, cfg.verdict_seconds)
            check_some_succeeded(self.task, verdicts)
            for record in sample_records(problems, texts, verdicts, rollout, k):
                found[record["prompt"]].append(measured(record, record["completion"]))
        return found

    def first_attempts(self, wanted: Callable[[dict], bool]) -> list[Start]:
        """The beginnings of the wanted answers, up to the end of the first attempt."""
        return [
            Start(self.problems[name], sample["completion"][: sample["reading"].attempts[0].end])
            for name, samples in self.answers.items()
            for sample in samples
            if wanted(sample)
        ]

    @torch.no_grad()
    def by_certainty(self) -> dict[str, set[str]]:
        """{group: its problems}: all, the uncertain ones and the others."""
        policy = tinyr1.Policy(self.model, self.cfg.temperature, self.cfg.precision).eval()
        entropies = defaultdict(list)
        for start in self.first_attempts(lambda sample: bool(sample["reading"].attempts)):
            ids = torch.tensor([self.begun(start).prompt_ids], device=self.model.device)  # (1,L)
            mask = torch.zeros_like(ids[:, 1:], dtype=torch.bool)  # (1,T)
            mask[:, len(start.problem.prompt_ids) - 1 :] = True
            entropies[start.problem.prompt].append(policy(ids, mask)[1][mask].mean().item())
        ranked = sorted(entropies, key=lambda name: -sum(entropies[name]) / len(entropies[name]))
        cut = round(UNCERTAIN * len(ranked))
        return {"all": set(self.problems), "uncertain": set(ranked[:cut]), "certain": set(ranked[cut:])}

    def figures(self, guesses: list[Start]) -> dict:
        """What these wrong guesses lead to, with and without a forced check."""
        k = self.cfg.continuations
        checked = [Start(p, text + CHECK.format(target=p.example["target"])) for p, text in guesses]
        arms = {"answers": self.answers, "new": self.new, "forced": {}, "unforced": {}}
        if guesses:
            arms["unforced"] = self.sample(guesses, k, "unforced")
            arms["forced"] = self.sample(checked, k, "forced")
        return {
            "model": self.cfg.model,
            "responses": sum(map(len, self.answers.values())),
            "wrong_guesses": len(guesses),
            **{name: effects(arms, among) for name, among in self.groups.items()},
        }


def check_wording(problem: tinyr1.Problem, cfg: Reflect) -> None:
    """UserError unless it is Countdown as the miniature's corpus has it."""
    short = countdown_like(problem.example) and problem.example.get("wording") == "short"
    if not short or problem.prompt.rstrip().endswith("<think>"):
        raise UserError(
            f"--task {cfg.task} --task_args {' '.join(cfg.task_args)} --template {cfg.template} is not "
            "Countdown as the miniature's corpus has it, and reflect takes that alone. Give --task countdown "
            "--task_args wording=short --template none, and a model that was trained on it."
        )


def is_wrong_guess(sample: dict) -> bool:
    """Whether it is wrong after one attempt, which misses the target and is not checked."""
    tried = sample["reading"].attempts
    if len(tried) != 1 or tried[0].checks or sample["correct"]:
        return False
    stops = sample["completion"].startswith("</think>", tried[0].end)
    return stops and tried[0].value != sample["example"]["target"]


def main(argv: list[str]) -> int:
    cfg, preset = tinyr1.parse(argv, Reflect)
    config.check_gpu(cfg, preset)
    folder = Path(cfg.out) if cfg.base else Path(cfg.out) / f"reflect-{cfg.name}"
    if len(found := [*sets(cfg).values()]) != 1:
        raise UserError(f"reflect takes one task, not --task {cfg.task}.")
    task, cfg = found[0].task, config.resolve(found[0].cfg, saved={})
    probe = Probe(TaskSet(task, replace(cfg, model=cfg.base, checkpoint="") if cfg.base else cfg))
    if not (guesses := probe.first_attempts(is_wrong_guess)):
        raise UserError(
            f"{probe.cfg.model} makes no wrong guess, so there is nothing to force a check on. Give a --base "
            "(without a run: a --model) that guesses, or more --eval_problems and --eval_samples."
        )
    sides = {"base" if cfg.base else "model": probe.figures(guesses)}
    if cfg.base:
        probe = Probe(TaskSet(task, cfg))
        sides["trained"] = probe.figures(probe.first_attempts(is_wrong_guess))
        sides["trained_from_base"] = probe.figures(guesses)
    for name, side in sides.items():
        after = "the base's " if name == "trained_from_base" else ""
        print(f"\n{name}, {after}{side['wrong_guesses']} wrong guesses:\n{table(side)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "reflect.json", {"config": asdict(cfg), "sides": sides, "environment": environment()})
    print(f"\nwritten: {folder / 'reflect.json'}")
    return 0
