"""Evaluate a model on one or many sets of problems: pass@1 with its interval, pass@k, cons@k.

    python tinyr1.py eval runs/mini                              a run's trained model, on its task
    python tinyr1.py eval runs/mini --task countdown:numbers=4,multiplication
    python tinyr1.py eval --model Qwen/Qwen2.5-Math-7B --template qwen-math --task math500,aime24,amc23 \\
        --eval_samples 8 --greedy True --max_new_tokens 3000
    python tinyr1.py eval --model DIR --task math500 --data math500=rows.jsonl
    python tinyr1.py eval --rescore runs/eval-mini/eval_samples.jsonl

A run that is still training is evaluated at its last checkpoint. Samples are written to
<out>/eval-<name>/eval_samples.jsonl as they are made, and the same command resumes after them. --rescore
grades stored samples again with the current task code; it needs no model. A model from `make-base`, and a run
that started from one, use the task options of the miniature's preset, such as wording=short, unless you give
others.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import tasks
import tinyr1
from engine.rollout import longest_prompt
from plots.summary import table
from runtime import config
from runtime.config import EvalOptions, ModelOptions, RunOptions, SampleOptions, TaskOptions, option
from runtime.digests import digest, model_files, task_files
from runtime.metrics import evaluation, sample_records
from runtime.models import check_tokenizer, load_model
from runtime.presets import PRESETS
from runtime.problems import held_out
from runtime.runfolder import (
    HERE,
    Clock,
    UserError,
    differing,
    environment,
    find_checkpoints,
    lock,
    read_checkpoint,
    to_json,
    write_atomically,
    write_json,
)
from runtime.scoring import check_some_succeeded, name_of

# Samples between two writes.
AT_ONCE = 1024
# Fields of a problem by whose values accuracy is reported too.
GROUPS = ("level", "subject")
# Follows a set's name in eval_samples.jsonl.
GREEDY = " (greedy)"
# Options that may differ when an evaluation is resumed.
FREE = {"out", "overwrite", "name", "device", "rescore", "own", "base"}


@dataclass
class SetOptions(TaskOptions):
    task: str = option(
        "countdown",
        "tasks, sets such as math500, or task files, separated by commas, each with its options as "
        "NAME:option=value",
    )
    data: list[str] = option([], "SET=FILE: read the problems of a set from a file")
    own: str = option("", "the task that --task_args belong to, if --task names several (a run sets it)")
    base: str = option("", "the model that the run started from (a run sets it)")
    checkpoint: str = option("", "a checkpoint of an unfinished run; its weights replace the model's")

    @classmethod
    def of_run(cls, folder: Path) -> dict[str, Any]:
        """The options for a run's trained model, or its last checkpoint, on its task. Errors: UserError."""
        if not folder.is_dir():
            hint = config.suggest(str(folder), PRESETS, "the preset ") or " Train first: bash run.sh"
            raise UserError(f"There is no run folder {folder}.{hint}")
        defaults, saved = config.defaults_of(cls), config.read_settings(folder)
        settings = {name: saved.get(name, value) for name, value in defaults.items()}
        settings |= {"name": "", "out": str(folder.resolve().parent), "device": "auto", "precision": "auto"}
        settings |= {"own": settings["task"], "base": settings["model"]}
        if (folder / "final").is_dir():
            return settings | {"model": str(folder / "final")}
        if checkpoints := find_checkpoints(folder):
            return settings | {"checkpoint": str(checkpoints[-1])}
        raise UserError(
            f"The run {folder} has neither final/ nor a checkpoint yet: start it again with the command that "
            "began it, and evaluate it after its first checkpoint."
        )


@dataclass
class GradingOptions(SetOptions):
    greedy: bool = option(False, "add one greedy answer per problem")
    rescore: str = option("", "grade the samples of this eval_samples.jsonl again; needs no model")


@dataclass
class Eval(ModelOptions, GradingOptions, SampleOptions, EvalOptions, RunOptions):
    __doc__ = __doc__


class TaskSet(NamedTuple):
    """A set of problems: its task, and the configuration with the task's name and options."""

    task: tasks.Task
    # Eval, or the configuration of another command that takes SetOptions
    cfg: Any


def usual_options(cfg: Any, name: str, task: tasks.Task) -> dict[str, str]:
    """The options of the miniature's preset for this task, if the model or the one that its run started from
    was made by make-base; otherwise none. A run's own task keeps the options of the run.
    """
    base = cfg.base or cfg.model
    folder = HERE / "minibase" if base == "minibase" else Path(base)
    if not (folder / "record.json").is_file() or cfg.base and name == cfg.own:
        return {}
    for preset in PRESETS.values():
        if "model" not in preset and tasks.load(preset.get("task", TaskOptions.task)) is task:
            return config.pairs(preset["task_args"])
    return {}


def sets(cfg: Any) -> dict[str, TaskSet]:
    """The sets that --task names. Errors: UserError, tasks.TaskError."""
    files, found, specs = {}, {}, cfg.task.split(",")
    names = [spec.split(":")[0] for spec in specs]
    own = cfg.own if cfg.own in names else names[0] if len(names) == 1 else None
    for pair in cfg.data:
        name, _, path = pair.partition("=")
        if not path:
            raise UserError(f"--data takes SET=FILE, e.g. math500=math500.jsonl; got {pair!r}.")
        files[name] = path
    for spec in specs:
        name, *options = spec.split(":")
        if bad := [option for option in options if "=" not in option]:
            raise UserError(f"--task {spec}: options are written NAME:option=value, not {bad[0]!r}.")
        task, data = tasks.find(name)
        given = data | config.pairs(cfg.task_args if name == own else [])
        file = {"data": files.pop(name), "test": "all"} if name in files else {}
        chosen = usual_options(cfg, name, task)
        for more in (given, config.pairs(options), file):
            chosen = tasks.join_options(task, chosen, more)
        found[spec] = TaskSet(
            task, replace(cfg, task=name, task_args=[f"{k}={v}" for k, v in chosen.items()])
        )
    if files:
        raise UserError(f"--data names {', '.join(files)}, which --task {cfg.task} does not evaluate.")
    return found


DIGESTS = {"weights": "the weights", "tasks": "the tasks' code or data"}


def fingerprints(cfg: Eval, found: dict[str, TaskSet]) -> dict[str, str | None]:
    """Digests of the files of the model and of the tasks; None for a model that is not downloaded yet."""
    model = [Path(cfg.checkpoint)] if cfg.checkpoint else model_files(cfg.model)
    code = [task_files(name_of(task), own.task_args) for task, own in found.values()]
    return {"weights": digest(model), "tasks": digest(set().union(*code))}


class Folder:
    """<out>/eval-<name>/: config.json, eval_samples.jsonl (one line per sample), eval.json (the figures)."""

    def __init__(self, cfg: Eval, found: dict[str, TaskSet]):
        """Errors: UserError if it cannot be written, is in use, or holds an evaluation of other settings."""
        self.path = Path(cfg.out) / f"eval-{cfg.name}"
        self.samples = self.path / "eval_samples.jsonl"
        self.clock = Clock()
        self.settings = {k: v for k, v in asdict(cfg).items() if k not in FREE} | fingerprints(cfg, found)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock(self.path)
            if cfg.overwrite:
                self.samples.unlink(missing_ok=True)
            elif self.samples.exists():
                self.check()
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error}. Choose another place with --out.") from error

    def check(self) -> None:
        """UserError if the stored evaluation has other settings; takes over its precision for `auto`."""
        settings = self.settings
        try:
            saved = json.loads((self.path / "config.json").read_text())
        except (OSError, ValueError):
            saved = {}
        if settings["precision"] == "auto":
            settings["precision"] = saved.get("precision", "auto")
        for name in DIGESTS:
            # in an older folder, or if the model was not downloaded then
            if None in (saved.get(name), settings[name]):
                saved[name] = settings[name]
        changed = differing(saved, settings, FREE)
        changed = [f"{DIGESTS.get(name, '--' + name)} changed" for name in changed]
        if changed:
            raise UserError(
                f"{self.path} holds an evaluation with other settings ({', '.join(changed[:5])}). Give "
                "another --name, or replace it with --overwrite."
            )

    @cached_property
    def stored(self) -> dict[str, list[dict]]:
        """{set: its records} when this was first asked; removes an incomplete last line from the file."""
        found: dict[str, list[dict]] = {}
        for record in read_samples(self.samples, cut=True) if self.samples.exists() else ():
            found.setdefault(record["task"], []).append(record)
        return found

    def append(self, records: list[dict]) -> None:
        try:
            with open(self.samples, "a") as file:
                file.write("".join(to_json(record) + "\n" for record in records))
        except OSError as error:
            raise UserError(
                f"Could not write {self.samples}: {error}. Make room on the disk; the same command resumes."
            ) from error


def read_samples(path: Path, cut: bool = False) -> list[dict]:
    """The records of a file of samples; `cut` removes an incomplete last line from the file. Errors:
    UserError if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if cut and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            path.write_text(text, encoding="utf-8")
        records = [json.loads(line) for _, line in tasks.json_lines(text)]
        for record in records:
            # raises KeyError here and not later
            record["example"], record["completion"]  # noqa: B018
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a file of samples ({type(error).__name__}: {error}). Give an eval_samples.jsonl "
            "as eval writes it: one JSON object per line, with example and completion."
        ) from error
    return records


def sample_set(
    name: str, k: int, own: TaskSet, held: list[tinyr1.Problem], model: Any, tokenizer: Any, folder: Folder
) -> list[dict]:
    """k records per problem of a set, appended to the folder chunk by chunk. Whole chunks that the folder has
    already are kept; an incomplete one is sampled again, with the same result. Errors: UserError, TaskError.
    """
    task, cfg, known = own.task, own.cfg, folder.stored.get(name, [])
    chunk = max(1, AT_ONCE // k)
    whole = len(known) if len(known) == len(held) * k else len(known) // (chunk * k) * chunk * k
    records, begun = known[:whole], len(known) - whole
    asked = [json.loads(json.dumps(problem.example, default=str)) for problem in held] if known else []
    for i, record in enumerate(known):
        if record["example"] != asked[min(i // k, len(held) - 1)]:
            raise UserError(
                f"The problems of {name} have changed since {folder.samples} was begun. Replace it with "
                "--overwrite, or give another --name."
            )
    bar = tqdm(total=len(held), initial=whole // k, desc=name, unit="problem", dynamic_ncols=True)
    for first in range(whole // k, len(held), chunk):
        part = held[first : first + chunk]
        with folder.clock("sampling"):
            roll, texts = tinyr1.sample(model, tokenizer, part, k, cfg, (cfg.seed << 32) + 12345 + first)
        with folder.clock("verdicts"):
            results = tinyr1.score(task, part, texts, k, cfg.verdict_seconds)
            check_some_succeeded(task, results)
        new = sample_records(part, texts, results, roll, k)
        new = [{"task": name, "problem": first + i // k, "sample": i % k, **r} for i, r in enumerate(new)]
        folder.append(new[begun:])
        records, begun = records + new, 0
        bar.update(len(part))
    bar.close()
    return records


def by_group(records: list[dict]) -> dict[str, dict[str, tuple[float, int]]]:
    """{field: {value: (accuracy, number of samples)}} for the fields in GROUPS that the problems have."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for field in GROUPS:
        values = sorted({str(r["example"].get(field)) for r in records} - {"None"})
        for value in values:
            right = [r["correct"] for r in records if str(r["example"].get(field)) == value]
            found.setdefault(field, {})[value] = (sum(right) / len(right), len(right))
    return found


def report(name: str, figures: dict) -> None:
    """Print the figures of a set."""
    print(f"\n{name}: {figures['problems']} problems, {figures['n']} samples\n{table(figures)}")
    for field, values in figures.get("by", {}).items():
        print(f"{field}: " + ", ".join(f"{value} {share:.1%} of {n}" for value, (share, n) in values.items()))


def figures_of(records: list[dict], task: tasks.Task, k: int) -> dict:
    """The figures of k records per problem: runtime.metrics.evaluation, and accuracy by group."""
    figures = evaluation(records, k, getattr(task, "equivalent", None))
    return figures | ({"by": groups} if (groups := by_group(records)) else {})


def task_of_run(folder: Path) -> str | None:
    """The task of a training run, whose samples do not name it; None if the folder is not one."""
    try:
        return json.loads((folder / "config.json").read_text())["config"]["task"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


KEPT = ("task", "problem", "sample", "example", "prompt", "completion", "tokens", "finished", "step", "split")


def stored_sets(path: Path, usual: str) -> dict[str, list[list[dict]]]:
    """{set: its problems, each the list of its records} of a file of samples; `usual` is the task of records
    that name none. Errors: UserError.
    """
    usual = task_of_run(path.parent) or usual
    by_set: dict[str, dict[str, list[dict]]] = {}
    for record in read_samples(path):
        name = record.get("task") or usual
        name += f" (step {record['step']})" if "step" in record else ""
        problem = str(record.get("problem", json.dumps(record["example"], default=str)))
        by_set.setdefault(name, {}).setdefault(problem, []).append(record)
    for name, problems in by_set.items():
        counts = sorted(map(len, problems.values()))
        if counts[0] < counts[-1]:
            raise UserError(
                f"{path}: the problems of {name} have {counts[0]} to {counts[-1]} samples, and "
                "grading needs the same number of each. Give an eval_samples.jsonl of a finished evaluation."
            )
    return {name: [*problems.values()] for name, problems in by_set.items()}


def rescore(cfg: Eval, task_is_typed: bool) -> None:
    """Grade stored samples again, with --task if it was typed, and write the records and their figures beside
    the file. Errors: UserError, TaskError.
    """
    path, new, out = Path(cfg.rescore), [], {}
    for name, problems in stored_sets(path, cfg.task).items():
        task = tasks.find(cfg.task if task_is_typed else name.split(" (")[0].split(":")[0])[0]
        old = [record for records in problems for record in records]
        posed = [tinyr1.Problem(record["example"], "", []) for record in old]
        results = tinyr1.score(task, posed, [record["completion"] for record in old], 1)
        graded = [
            {"tokens": 0, "finished": True, **{key: r[key] for key in KEPT if key in r}, **result}
            for r, result in zip(old, results)
        ]
        changed = sum(bool(r.get("correct")) != g["correct"] for r, g in zip(old, graded))
        out[name] = figures_of(graded, task, len(problems[0])) | {"changed_verdicts": changed}
        report(name, out[name])
        print(f"{changed} of {len(old)} verdicts changed")
        new += graded
    lines = "".join(to_json(record) + "\n" for record in new)
    write_atomically(path.with_suffix(".rescored.jsonl"), lambda file: file.write(lines.encode()))
    write_json(path.with_suffix(".rescored.json"), {"sets": out, "environment": environment()})
    print(f"written: {path.with_suffix('.rescored.jsonl')} and .json")


def load(cfg: Any) -> tuple[Any, Any]:
    """The model, with the checkpoint's weights if there is one, and its tokenizer. Errors: UserError."""
    model, tokenizer = load_model(cfg.model, torch.device(cfg.device), 6)
    if cfg.checkpoint:
        try:
            state = read_checkpoint(Path(cfg.checkpoint))
            model.load_state_dict(state["model"])
        except Exception as error:
            raise UserError(
                f"The checkpoint {cfg.checkpoint} cannot be read ({type(error).__name__}): it is truncated, "
                f"or not a checkpoint of {cfg.model}. Give that model with --model, or train again."
            ) from error
        print(f"{cfg.name}: still in training, at step {state['step']}")
    check_tokenizer(model, tokenizer, cfg.template)
    return model, tokenizer


def problems_of(name: str, own: TaskSet, model: Any, tokenizer: Any) -> list[tinyr1.Problem]:
    """The first --eval_problems of a set; says so if the set has more. Errors: UserError, TaskError."""
    count = own.cfg.eval_problems
    one_more = replace(own.cfg, eval_problems=count + 1)
    held = held_out(own.task, one_more, tokenizer, longest_prompt(model, own.cfg.max_new_tokens))
    if len(held) > count:
        print(f"{name}: the first {count} problems of the set; --eval_problems takes more")
    return held[:count]


def main(argv: list[str]) -> int:
    cfg, preset = tinyr1.parse(argv, Eval)
    if cfg.rescore:
        rescore(cfg, any(word.split("=")[0] == "--task" for word in argv))
        return 0
    config.check_gpu(cfg, preset)
    found = sets(cfg)
    folder = Folder(cfg, found)
    # a resumed evaluation keeps the precision with which it began
    cfg = config.resolve(cfg, {"precision": folder.settings["precision"]})
    write_json(folder.path / "config.json", folder.settings | {"precision": cfg.precision})
    model, tokenizer = load(cfg)
    # of all sets, before the first is sampled: a mistake in the last one costs nothing
    held = {name: problems_of(name, own, model, tokenizer) for name, own in found.items()}
    out = {}
    for name, (task, own_cfg) in found.items():
        own = TaskSet(task, replace(own_cfg, device=cfg.device, precision=cfg.precision))
        records = sample_set(name, cfg.eval_samples, own, held[name], model, tokenizer, folder)
        # for cons@k, the task compares answers
        with folder.clock("verdicts"):
            out[name] = figures_of(records, task, cfg.eval_samples)
        if cfg.greedy:
            own = TaskSet(task, replace(own.cfg, temperature=0.0))
            once = sample_set(name + GREEDY, 1, own, held[name], model, tokenizer, folder)
            out[name]["greedy"] = evaluation(once, 1)["accuracy"]
        report(name, out[name])
    seconds = {name: round(spent, 2) for name, spent in folder.clock.items()}
    record = {"config": asdict(cfg), "sets": out, "seconds": seconds, "environment": environment()}
    write_json(folder.path / "eval.json", record)
    told = ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items())
    print(f"\n{told}; written to {folder.path}")
    return 0
