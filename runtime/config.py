"""From a command line to a checked configuration: option groups, algorithm rows, presets, names, ranges.

An option group is a dataclass of options that belong together. A command is the tuple of groups that it
takes: `class Eval(ModelOptions, ...)`. Its options are flat, on the command line (`--lr`) and in the code
(`cfg.lr`); the groups are the headings of --help.
"""

import argparse
import difflib
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import HfArgumentParser

import tasks
from plots.runs import OLD_NAMES, current_names
from runtime.models import pick_device, pick_precision
from runtime.presets import ABOUT, MADE_HERE
from runtime.runfolder import UserError
from tasks import rewards

# ---------------------------------------------------------------- option groups


AMOUNT = (0, 10**9)
COUNT = (1, 10**9)
POSITIVE = (1e-12, 10**9)
# sampled tokens, or steps that never end
HUGE = (0, 10**15)
SHARE = (0, 1)
Range = tuple[float, float]


def option(default: Any, help: str, choices: Iterable[str] | None = None) -> Any:
    """A field of an option group."""
    metadata = {"help": help} | ({"choices": list(choices)} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# Options that cannot act -> (when, what they would need).
Idle = dict[str, tuple[Callable[[Any], bool], str]]


@dataclass
class Options:
    """A group of options, or all the options of a command."""

    # {names of options: (lowest, highest)}; other numbers lie in AMOUNT.
    RANGES: ClassVar[dict[str, Range]] = {}
    # Asking by hand for an option that cannot act is refused.
    IDLE: ClassVar[Idle] = {}

    @classmethod
    def names(cls) -> dict[str, Iterable[str]]:
        """{option: the names that it takes}, for tables that are defined after the group."""
        return {}

    def check(self) -> None:
        """UserError for options that do not go together."""


@dataclass
class ModelOptions(Options):
    _argument_group_name = "model"
    model: str = option("minibase", "Hugging Face folder or hub id; minibase is the miniature shipped here")
    template: str = option("none", "prompt template", tasks.TEMPLATES)
    device: str = option("auto", "auto: cuda if there is a GPU, else cpu", ["auto", "cuda", "cpu"])
    precision: str = option(
        "auto", "of matrix products; auto: whichever is faster on this machine", ["auto", "fp32", "bf16"]
    )


@dataclass
class TaskOptions(Options):
    _argument_group_name = "task"
    RANGES = {"verdict_seconds": (1e-3, 10**6)}
    task: str = option("countdown", "name of a task in tasks/, or the path of your own task file")
    task_args: list[str] = option([], "options of the task as name=value, e.g. numbers=3 reward=simplerl")
    verdict_seconds: float = option(60.0, "a verdict that takes longer counts as failed")


@dataclass
class SampleOptions(Options):
    _argument_group_name = "sampling"
    RANGES = {"max_new_tokens": COUNT, "top_p": (1e-12, 1)}
    max_new_tokens: int = option(384, "maximum tokens per response")
    temperature: float = option(1.0, "of training and evaluation samples")
    top_p: float = option(1.0, "nucleus of all samples; log-probabilities stay those of all tokens")


@dataclass
class RolloutOptions(Options):
    _argument_group_name = "samples of a training step"
    RANGES = {
        "prompts group overlong_buffer": COUNT,
        "min_pass_rate max_pass_rate": SHARE,
        "max_resamples": (0, 127),
    }
    prompts: int = option(16, "B, prompts per step")
    group: int = option(16, "G, samples per prompt")
    filter_groups: bool = option(False, "leave out groups whose task rewards are all equal")
    min_pass_rate: float = option(0.0, "leave out groups with a smaller share of correct answers")
    max_pass_rate: float = option(1.0, "leave out groups with a larger share of correct answers")
    max_resamples: int = option(0, "maximum draws of new prompts to replace the groups left out")
    mask_truncated: bool = option(False, "leave responses that were cut at --max_new_tokens out of the loss")
    overlong_buffer: int = option(64, "last tokens below the maximum; over them the penalty grows to 1")
    rewards: str = option("task", "components that add up, e.g. task,format:0.2,overlong: tasks/rewards.py")

    IDLE = {
        "max_resamples": (
            lambda cfg: not cfg.filters(),
            "a filter: --filter_groups True, --min_pass_rate or --max_pass_rate",
        ),
    }

    def filters(self) -> bool:
        return self.filter_groups or self.min_pass_rate > 0 or self.max_pass_rate < 1

    def check(self) -> None:
        rewards.parse(self.rewards)
        if self.min_pass_rate > self.max_pass_rate:
            raise UserError(
                f"--min_pass_rate {self.min_pass_rate} must not exceed --max_pass_rate {self.max_pass_rate}."
            )


@dataclass
class OptimOptions(Options):
    _argument_group_name = "optimization"
    RANGES = {"steps micro_tokens": COUNT, "token_budget": HUGE, "lr grad_clip": POSITIVE}
    steps: int = option(60, "training steps")
    token_budget: int = option(0, "stop after this many sampled tokens, if before --steps; 0: no budget")
    lr: float = option(2e-4, "peak learning rate of AdamW")
    warmup: int = option(3, "steps of linear warm-up")
    schedule: str = option("constant", "learning rate after the warm-up", ["constant", "cosine"])
    weight_decay: float = option(0.0, "of AdamW")
    grad_clip: float = option(1.0, "maximum gradient norm")
    micro_tokens: int = option(4096, "padded tokens per micro-batch: limits memory, keeps the gradient")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass to save memory")


@dataclass
class EvalOptions(Options):
    _argument_group_name = "evaluation"
    RANGES = {"eval_problems eval_samples": COUNT}
    eval_problems: int = option(500, "held-out problems; of a training run: before and after it")
    eval_samples: int = option(4, "k, samples per held-out problem")


@dataclass
class LoopOptions(Options):
    _argument_group_name = "during training"
    RANGES = {"save_every keep_checkpoints bad_steps": COUNT, "stop_accuracy": SHARE}
    probe_every: int = option(10, "steps between small evaluations; 0: none")
    probe_problems: int = option(128, "held-out problems of a small evaluation, one sample each")
    stop_accuracy: float = option(0.0, "stop after a small evaluation with this accuracy; 0: do not")
    save_every: int = option(5, "steps between checkpoints")
    keep_checkpoints: int = option(2, "how many of the last checkpoints stay on disk")
    keep_samples: int = option(8, "training samples per step that samples.jsonl keeps")
    bad_steps: int = option(3, "stop after this many steps in a row with a NaN or infinite gradient")

    IDLE = {
        "probe_problems stop_accuracy": (lambda cfg: cfg.probe_every == 0, "--probe_every above 0"),
    }

    def check(self) -> None:
        if self.probe_every and not self.probe_problems:
            raise UserError(
                "--probe_problems 0 leaves nothing to evaluate: give --probe_every 0 for no small evaluation."
            )


@dataclass
class RunOptions(Options):
    _argument_group_name = "run folder"
    RANGES = {"seed": (0, 2**31 - 1)}
    name: str = option("", "folder under --out; empty: named after the preset and the options you changed")
    out: str = option("runs", "where run folders are")
    seed: int = option(0, "random seed")
    overwrite: bool = option(False, "first delete a run folder of the same name")


# ---------------------------------------------------------------- the command line


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each option under one spelling, and its default unless it is empty."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.option_strings[:1] == [f"--no_{action.dest}"]:
            return f"the same as --{action.dest} False"
        empty = action.default is None or action.default in ("", [])
        return action.help if empty else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"


class Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. `{self.prog} --help` lists every option.")


def title(command: type[Options]) -> str:
    """A command's name on the command line."""
    return command.__name__.lower()


def groups_of(command: type[Options]) -> tuple[Any, ...]:
    """The option groups that a command takes."""
    return command.__bases__


def options_of(command: type[Options]) -> list[Field]:
    """The options of a command, group by group."""
    return [option for group in groups_of(command) for option in fields(group)]


def defaults_of(command: type[Options]) -> dict[str, Any]:
    return {f.name: default_of(f) for f in options_of(command)}


def check_ranges(cfg: Options) -> None:
    """UserError unless every number lies in the range of its option; NaN lies in none."""
    groups = groups_of(type(cfg))
    ranges = {name: r for group in groups for names, r in group.RANGES.items() for name in names.split()}
    for name in defaults_of(type(cfg)):
        value, (low, high) = getattr(cfg, name), ranges.get(name, AMOUNT)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise UserError(f"--{name} {value} is out of range: it must lie in {low}..{high}.")


def default_of(f: Field) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def make_parser(command: type[Options], presets: dict) -> Parser:
    """A parser that returns only what was typed."""
    parser = Parser(
        groups_of(command),
        prog=f"tinyr1.py {title(command)}",
        usage="%(prog)s [preset] [--option value ...]",
        allow_abbrev=False,
        add_help=False,
        formatter_class=Help,
        description=command.__doc__,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show the options with their defaults")
    or_run = ", or a run folder" if hasattr(command, "of_run") else ""
    parser.add_argument("preset", nargs="?", help=f"one of {', '.join(presets)}{or_run}")
    names = {name: taken for group in groups_of(command) for name, taken in group.names().items()}
    for action in parser._actions:
        if action.dest in names:
            action.choices = list(names[action.dest])
        action.default = argparse.SUPPRESS
    return parser


def parse(command: type[Options], argv: list[str], presets: dict, rows: dict) -> tuple[Any, str]:
    """(configuration, preset's name or "") of a command line; `rows` are those of the algorithms.

    What comes later wins: the defaults of the options, the algorithm's row, the preset, what is typed. The
    row of a typed --algo that is not the preset's own comes after the preset. --help shows the values that a
    run with these arguments would get. Errors: UserError, TaskError.
    """
    parser = make_parser(command, presets)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        refuse_unknown(command, parser, unknown[0])
    typed = vars(arguments)
    asks_help, word = typed.pop("help", False), typed.pop("preset", "")
    start = find_start(command, presets, word)
    settings = settings_before(command, rows, start, typed)
    cfg: Any = command(**settings | typed)
    cfg.task_args = merge_task_args(settings, cfg.task_args)
    free = ("name", "out", "overwrite")
    changed = {k: getattr(cfg, k) for k in settings if getattr(cfg, k) != settings[k] and k not in free}
    cfg.name = cfg.name or run_name(start.name or short(Path(cfg.task).stem), changed)
    if asks_help:
        parser.set_defaults(**vars(cfg))
        parser.print_help()
        parser.exit()
    check_ranges(cfg)
    for part in (*groups_of(command), command):
        part.check(cfg)
    refuse_idle(cfg, changed)
    return cfg, word if word in presets else ""


class Start(NamedTuple):
    """What the first word of a command line names."""

    name: str
    settings: dict[str, Any]
    # Whether the settings are the whole configuration of a run, in which its algorithm's row is.
    is_run: bool = False


def find_start(command: Any, presets: dict, word: str) -> Start:
    """The preset of this name, or the run folder for a command that takes one."""
    if not word:
        return Start("", {})
    if word in presets:
        return Start(word, presets[word])
    if hasattr(command, "of_run"):
        return Start(Path(word).resolve().name, command.of_run(Path(word)), is_run=True)
    raise UserError(f"Unknown preset {word!r}.{suggest(word, presets)} There are: {', '.join(presets)}.")


def settings_before(command: type[Options], rows: dict, start: Start, typed: dict) -> dict[str, Any]:
    """The value that each option has unless it is typed."""
    usual, preset = defaults_of(command), dict(start.settings)
    own_task = preset.get("task", usual["task"])
    if own_task not in [spec.split(":")[0] for spec in typed.get("task", own_task).split(",")]:
        # the preset's are options of another task
        preset["task_args"] = []
    if "algo" in usual:
        own = preset.get("algo", usual["algo"])
        algo = typed.get("algo", own)
        if algo != own:
            preset = preset | rows[algo]
        elif not start.is_run:
            preset = rows[own] | preset
    if brings_another_model(typed.get("model"), start.settings):
        preset["lr"] = PUBLISHED_LR
    return {name: preset.get(name, value) for name, value in usual.items()}


def merge_task_args(settings: dict, typed: list[str]) -> list[str]:
    """Options of the preset stay unless they are named again or replaced; `name=` removes one."""
    if bad := [pair for pair in typed if "=" not in pair]:
        raise UserError(f"--task_args takes name=value pairs, e.g. numbers=3; got {bad[0]!r}.")
    given = pairs(settings["task_args"])
    task = tasks.find(settings["task"])[0] if given else None
    return [f"{name}={value}" for name, value in tasks.join_options(task, given, pairs(typed)).items()]


def run_name(start: str, changed: dict) -> str:
    name = "-".join([start, *(f"{option}_{short(value)}" for option, value in changed.items())])
    # the name of a folder has a maximum length
    return name if len(name) <= 100 else f"{name[:90]}-{zlib.crc32(name.encode()):08x}"


def short(value: Any) -> str:
    """An option's value as part of a folder's name."""
    text = "+".join(value) if isinstance(value, list) else str(value)
    return "".join(c if c.isalnum() or c in "._=+-" else "_" for c in Path(text).name)[:60]


def pairs(words: list[str]) -> dict[str, str]:
    """{name: value} of name=value pairs, as the command line has them."""
    return dict(word.split("=", 1) for word in words)


# ---------------------------------------------------------------- what is refused


def suggest(word: str, known: Iterable[str], kind: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f" Did you mean {kind}{near[0]}?" if near else ""


def refuse_unknown(command: type[Options], parser: Parser, word: str) -> None:
    typed = word.split("=")[0]
    name = typed.removeprefix("--").replace("-", "_")
    if name in OLD_NAMES:
        raise UserError(f"--{name} has another name now: write --{OLD_NAMES[name]}.")
    if any(name == option.name for group in Options.__subclasses__() for option in fields(group)):
        raise UserError(
            f"--{name} is an option of training, which {title(command)} does not read: leave it out."
        )
    known = [string for action in parser._actions for string in action.option_strings]
    raise UserError(
        f"Unknown option {word!r}.{suggest(typed, known)} "
        f"`python tinyr1.py {title(command)} --help` lists them all."
    )


# With other options 0 asks for nothing.
ZERO_IS_A_VALUE = {"clip_low", "clip_high", "gamma", "gae_lambda"}


def refuse_idle(cfg: Options, changed: Iterable[str]) -> None:
    """UserError if an option that was given by hand cannot act."""
    idle = [row for group in groups_of(type(cfg)) for row in group.IDLE.items()]
    for names, (cannot_act, needs) in idle:
        for name in names.split():
            value = getattr(cfg, name)
            if name in changed and (value or name in ZERO_IS_A_VALUE) and cannot_act(cfg):
                raise UserError(f"--{name} {value} does nothing here: it needs {needs}.")


# ---------------------------------------------------------------- the learning rate belongs to the model

# TinyZero's for Qwen2.5. The miniature's, which is hundreds of times as large, would ruin such a model.
PUBLISHED_LR = 1e-6
# Hidden size below which a local model is trained like the miniature.
NARROW = 512


def is_miniature(model: str) -> bool:
    """Whether the model is minibase, or a local one as narrow."""
    try:
        return json.loads((Path(model) / "config.json").read_text())["hidden_size"] < NARROW
    except (OSError, ValueError, KeyError, TypeError):
        return model == "minibase"


def brings_another_model(model: str | None, preset: dict) -> bool:
    """Whether a typed --model is not a miniature although the preset, or the defaults, are for one."""
    made_for_miniature = preset.get("model", "minibase") in ("minibase", *MADE_HERE)
    return made_for_miniature and model is not None and not is_miniature(model)


def lr_notice(cfg: Any, preset: dict, argv: list[str]) -> str:
    """What to say where parse chose a learning rate for a model that is not a miniature; otherwise ""."""
    typed = {word.split("=")[0] for word in argv}
    if "--model" not in typed or "--lr" in typed or not brings_another_model(cfg.model, preset):
        return ""
    return (
        f"No --lr was given, and {cfg.model} is not the miniature, for which the default is made: taking "
        f"--lr {cfg.lr:g}, as the presets for published models do."
    )


# ---------------------------------------------------------------- the machine


def resolve(cfg: Any, saved: dict) -> Any:
    """A copy in which `auto` is replaced: by the device and precision that were saved when the run or the
    evaluation began, or else by this machine's. Errors: UserError.
    """
    asked = {
        name: saved.get(name, "auto") if getattr(cfg, name) == "auto" else getattr(cfg, name)
        for name in ("device", "precision")
    }
    device = pick_device(asked["device"])
    return replace(cfg, device=device.type, precision=pick_precision(asked["precision"], device))


def check_gpu(cfg: Any, preset: str) -> None:
    """UserError, before anything is downloaded, if a preset for a GPU would run on the CPU without --device
    cpu; a notice if the GPU has less free memory than training was estimated to need.
    """
    needed = ABOUT[preset].gpu_gb if preset else 0
    if not needed or cfg.device == "cpu" or is_miniature(cfg.model):
        return
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0] / 1e9
        if free < needed:
            print(
                f"Training {preset} was estimated to need {needed} GB of GPU memory, and {free:.0f} GB are "
                "free: if they do not suffice, lower --micro_tokens."
            )
        return
    wanted = [("model", cfg.model)]
    wanted += [("dataset", pair.removeprefix("data=")) for pair in cfg.task_args if pair.startswith("data=")]
    absent = [f"the {kind} {name}" for kind, name in wanted if not is_here(kind, name)]
    lacks = f" Not on this machine either: {' and '.join(absent)}." if absent else ""
    raise UserError(
        f"The preset {preset} needs a GPU with about {needed} GB of memory, and torch sees none here.{lacks} "
        "Choose a machine that has one, or a smaller preset (bash run.sh --help); --device cpu runs it on "
        "the processor all the same, slowly."
    )


def is_here(kind: str, name: str) -> bool:
    """Whether a "model" or "dataset" is a local path, or was downloaded from the hub before."""
    snapshots = Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    return Path(name).exists() or (snapshots.is_dir() and any(snapshots.iterdir()))


def larger_preset() -> str:
    """One line: the largest preset that this machine's GPU could hold."""
    free = torch.cuda.mem_get_info()[0] / 1e9 if torch.cuda.is_available() else 0
    fits = [name for name, about in ABOUT.items() if 0 < about.gpu_gb <= free]
    if fits:
        return f"This machine's GPU could also run: bash run.sh {fits[-1]}"
    return "No GPU that holds a larger preset was found; bash run.sh --help says what each needs."


def differences(cfg: Any, preset: dict, rows: dict) -> dict[str, Any]:
    """{option: value} where a run differs from its preset's settings, with the row of its algorithm."""
    usual, row = defaults_of(type(cfg)), rows[cfg.algo]
    typed = cfg.algo != preset.get("algo", usual["algo"])
    usual |= preset | row if typed else row | preset
    free = ("name", "out", "overwrite")
    return {
        name: getattr(cfg, name) for name in usual if name not in free and getattr(cfg, name) != usual[name]
    }


def describe(cfg: Any, rows: dict) -> str:
    """The settings that matter, in three lines."""
    usual = defaults_of(type(cfg)) | rows[cfg.algo]
    algorithm = next(group for group in groups_of(type(cfg)) if "algo" in group.__annotations__)
    names = [f.name for group in (algorithm, RolloutOptions) for f in fields(group)]
    named_elsewhere = ("algo", "prompts", "group")
    changed = [
        f"{name}={getattr(cfg, name)}"
        for name in names
        if name not in named_elsewhere and getattr(cfg, name) != usual[name]
    ]
    told = f"{cfg.algo} with {' '.join(changed)}" if changed else cfg.algo
    length = f"{cfg.token_budget} sampled tokens" if cfg.token_budget else f"{cfg.steps} steps"
    return (
        f"model {cfg.model} | task {' '.join([cfg.task, *cfg.task_args])} | template {cfg.template}\n"
        f"algorithm {told} | lr {cfg.lr:g} {cfg.schedule}\n"
        f"{length} of {cfg.prompts} prompts x {cfg.group} samples of at most {cfg.max_new_tokens} tokens | "
        f"seed {cfg.seed} | {cfg.device}, {cfg.precision}"
    )


# ---------------------------------------------------------------- the settings of a run


def read_settings(folder: Path) -> dict[str, Any]:
    """The configuration of a run folder, under the names that the options have now. Errors: UserError."""
    try:
        return current_names(json.loads((folder / "config.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is no run folder: its config.json cannot be read ({type(error).__name__}: {error})."
        ) from error
