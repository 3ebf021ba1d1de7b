"""From a command line to a checked configuration: algorithm rows, presets, run folders, names, ranges."""

import argparse
import difflib
import json
import zlib
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import HfArgumentParser

import tasks
from plots.old_names import OLD_NAMES, current_names
from runtime.presets import MADE_HERE
from runtime.runfolder import UserError
from tasks import rewards


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


class Parser(HfArgumentParser):
    def error(self, message):
        raise UserError(f"{message}. `{self.prog} --help` lists every knob.")


def make_parser(Config, presets: dict, tables: dict, command: str) -> Parser:
    """A parser that returns only what was typed. `tables`: knob -> the names that it takes."""
    parser = Parser(
        Config,
        prog=f"tinyr1.py {command}",
        usage="%(prog)s [preset] [--knob value ...]",
        allow_abbrev=False,
        add_help=False,
        formatter_class=Help,
        description=Config.__doc__,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show every knob with its default and exit")
    parser.add_argument(
        "preset", nargs="?", help=f"one of {', '.join(presets)}" + (", or a run folder" * (command == "eval"))
    )
    for action in parser._actions:
        action.choices = [*tables[action.dest]] if action.dest in tables else action.choices
        action.help = argparse.SUPPRESS if action.dest in getattr(Config, "HIDDEN", ()) else action.help
        action.default = argparse.SUPPRESS
    return parser


def parse(Config, algorithms: dict, presets: dict, tables: dict, command: str, argv: list[str]):
    """(config, preset's name or ""): Config's defaults < the algorithm's row < the preset < the command line;
    the row of an --algo that is not the preset's own comes after the preset. `tables`: knob -> the names
    that it takes. --help shows the values that a run with these arguments would get. Errors: UserError.
    """
    parser = make_parser(Config, presets, tables, command)
    refuse_old_names(argv)
    args, unknown = parser.parse_known_args(argv)
    typed = vars(args)  # the knobs given by hand, and no others
    asks_help, name = typed.pop("help", False), typed.pop("preset", None)
    preset, run = dict(presets.get(name) or {}), None
    if command == "eval" and name and name not in presets:
        preset, run = run_config(Config, presets, Path(name)), Path(name).resolve().name
        name = None
    elif name and name not in presets:
        near = difflib.get_close_matches(name, presets, 1)
        raise UserError(
            f"Unknown preset {name!r}.{f' Did you mean {near[0]}?' if near else ''} "
            f"There are: {', '.join(presets)}."
        )
    if unknown:
        refuse_unknown(parser, unknown[0], command)
    if unread := [knob for knob in typed if knob in getattr(Config, "HIDDEN", ())]:
        raise UserError(f"--{unread[0]} is a knob of training, which {command} does not read: leave it out.")
    settings = defaults_of(Config, algorithms, preset, run, typed)
    if command == "train" and brings_another_model(typed.get("model"), preset):
        settings["lr"] = PUBLISHED_LR
    cfg = Config(**settings | typed)
    if bad := [option for option in cfg.task_args if "=" not in option]:
        raise UserError(f"--task_args takes name=value pairs, e.g. numbers=3; got {bad[0]!r}.")
    given = pairs(settings["task_args"])
    # options of the preset stay unless they are named again or replaced; `name=` takes one away
    merged = tasks.join_options(
        tasks.find(settings["task"])[0] if given else None, given, pairs(cfg.task_args)
    )
    cfg.task_args = [f"{k}={v}" for k, v in merged.items()]
    changed = {
        k: v for k, v in vars(cfg).items() if v != settings[k] and k not in ("name", "out", "overwrite")
    }
    cfg.name = cfg.name or "-".join(
        [name or run or short(Path(cfg.task).stem), *(f"{k}_{short(v)}" for k, v in changed.items())]
    )
    if len(cfg.name) > 100:  # a folder's name has a limit
        cfg.name = f"{cfg.name[:90]}-{zlib.crc32(cfg.name.encode()):08x}"
    if asks_help:
        show_help(parser, vars(cfg))
    validate(cfg, command, changed)
    return cfg, name or ""


def defaults_of(Config, algorithms: dict, preset: dict, run: str | None, typed: dict) -> dict:
    """The value of every knob that is not typed. `run`: `preset` is the whole configuration of a run."""
    defaults = {f.name: default(f) for f in fields(Config)}
    task = preset.get("task", defaults["task"])
    if task not in [spec.split(":")[0] for spec in typed.get("task", task).split(",")]:
        preset = preset | {"task_args": []}  # the preset's are another task's
    own = preset.get("algo", defaults["algo"])
    algo = typed.get("algo", own)
    if algo != own:
        settings = defaults | preset | algorithms[algo]
    elif run:
        settings = defaults | preset
    else:
        settings = defaults | algorithms[own] | preset
    return settings


def refuse_old_names(argv: list[str]) -> None:
    for word in argv:
        old = word.split("=")[0].removeprefix("--")
        if word.startswith("--") and old in OLD_NAMES:
            raise UserError(f"--{old} has another name now: write --{OLD_NAMES[old]}.")


def refuse_unknown(parser: Parser, word: str, command: str) -> None:
    options = [s for a in parser._actions for s in a.option_strings]
    near = difflib.get_close_matches(word.split("=")[0], options, 1)
    raise UserError(
        f"Unknown knob {word!r}.{f' Did you mean {near[0]}?' if near else ''} "
        f"`python tinyr1.py {command} --help` lists them all."
    )


def show_help(parser: Parser, values: dict) -> None:
    """Print the help with these values as the defaults, and exit."""
    for action in parser._actions:
        action.default = values.get(action.dest, argparse.SUPPRESS)
    parser.print_help()
    parser.exit()


# ---------------------------------------------------------------- the learning rate belongs to the model

PUBLISHED_LR = 1e-6  # TinyZero's for Qwen2.5; the miniature's, hundreds of times that, would ruin it
NARROW = 512  # hidden size below which a local model is trained like the miniature


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


def lr_notice(cfg, preset: dict, argv: list[str]) -> str:
    """What to say where parse chose a learning rate for a model that is not a miniature; "" elsewhere."""
    typed = {word.split("=")[0] for word in argv}
    if "--model" not in typed or "--lr" in typed or not brings_another_model(cfg.model, preset):
        return ""
    return (
        f"No --lr was given, and {cfg.model} is not the miniature, for which the default is made: taking "
        f"--lr {cfg.lr:g}, as the presets for published models do."
    )


# ---------------------------------------------------------------- what a run says first


def check_gpu(cfg, preset: str, needs: dict) -> None:
    """UserError, before anything is downloaded, if a preset for a GPU would run on the CPU unasked; a notice
    if the GPU has less free memory than training was estimated to need: `needs`, GB by preset.
    """
    needed = needs.get(preset, 0)
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
    wanted += [("dataset", o.removeprefix("data=")) for o in cfg.task_args if o.startswith("data=")]
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


def describe(cfg, algorithms: dict) -> str:
    """The settings that matter, in three lines."""
    usual = {f.name: default(f) for f in fields(cfg)} | algorithms[cfg.algo]
    names = [*usual]
    of_algorithm = names[names.index("adv") : names.index("steps")]
    changed = [f"{k}={getattr(cfg, k)}" for k in of_algorithm if getattr(cfg, k) != usual[k]]
    algorithm = f"{cfg.algo} with {' '.join(changed)}" if changed else cfg.algo
    length = f"{cfg.token_budget} sampled tokens" if cfg.token_budget else f"{cfg.steps} steps"
    return (
        f"model {cfg.model} | task {' '.join([cfg.task, *cfg.task_args])} | template {cfg.template}\n"
        f"algorithm {algorithm} | lr {cfg.lr:g} {cfg.schedule}\n"
        f"{length} of {cfg.prompts} prompts x {cfg.group} samples of at most {cfg.max_new_tokens} tokens | "
        f"seed {cfg.seed} | {cfg.device}, {cfg.precision}"
    )


# ---------------------------------------------------------------- a run folder as defaults


def run_config(Config, presets: dict, folder: Path) -> dict:
    """The knobs of a run, with its trained model or its last checkpoint, as defaults for `eval`."""
    if not folder.is_dir():
        near = difflib.get_close_matches(str(folder), presets, 1)
        hint = f" Did you mean the preset {near[0]}?" if near else " Train first: bash run.sh"
        raise UserError(f"There is no run folder {folder}.{hint}")
    try:
        saved = json.loads((folder / "config.json").read_text())
        settings = current_names(saved["config"])
        knobs = {f.name: settings.get(f.name, default(f)) for f in fields(Config)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is no run folder: its config.json cannot be read ({type(error).__name__}: {error})."
        ) from error
    knobs |= {"name": "", "out": str(folder.resolve().parent), "device": "auto", "precision": "auto"}
    if "own" in knobs:
        knobs |= {"own": knobs["task"], "base": knobs["model"]}
    if (folder / "final").is_dir():
        return knobs | {"model": str(folder / "final")}
    if (state := folder / "checkpoint" / "state.pt").exists():
        return knobs | {"checkpoint": str(state)}
    raise UserError(f"The run {folder} has neither final/ nor a checkpoint yet: run it again.")


def pairs(words: list[str]) -> dict[str, str]:
    """{name: value} of name=value pairs, as the command line has them."""
    return dict(word.split("=", 1) for word in words)


def default(f):
    """The default value of a dataclass's field."""
    return f.default if f.default is not MISSING else f.default_factory()


def short(value) -> str:
    """A knob's value as part of a folder's name."""
    text = "+".join(value) if isinstance(value, list) else str(value)
    return "".join(c if c.isalnum() or c in "._=+-" else "_" for c in Path(text).name)[:60]


RANGES = {  # knob -> smallest and largest value; what is not here has its own check or none
    **dict.fromkeys("prompts group max_new_tokens epochs minibatches steps micro_tokens".split(), (1, 10**9)),
    **dict.fromkeys("eval_problems eval_samples save_every bad_steps overlong_buffer".split(), (1, 10**9)),
    **dict.fromkeys("warmup probe_every probe_problems keep_samples kl".split(), (0, 10**9)),
    **dict.fromkeys("weight_decay tis_cap clip_dual kl_target entropy value_clip".split(), (0, 10**9)),
    "critic_lr": (0, 10**9),
    **dict.fromkeys("critic_warmup token_budget".split(), (0, 10**15)),
    **dict.fromkeys("lr grad_clip top_p prm_beta".split(), (1e-12, 10**9)),
    **dict.fromkeys("gamma gae_lambda min_pass_rate max_pass_rate".split(), (0, 1)),
    "max_resamples": (0, 127),
    "verdict_seconds": (1e-3, 10**6),
    "temperature": (0, 10**9), "clip_low": (0, 1), "clip_high": (0, 10**9), "seed": (0, 2**31 - 1),
}  # fmt: skip


def on_policy(cfg) -> bool:
    """Whether every optimizer step has a rollout of its own: then the ratio is 1 and nothing clips it."""
    return cfg.epochs * cfg.minibatches == 1


ZERO_IS_A_VALUE = {"clip_low", "clip_high", "gamma", "gae_lambda"}  # of the other knobs 0 asks for nothing
OFF_POLICY = "more than one optimizer step per rollout: --epochs or --minibatches above 1"
IDLE = {  # knobs that cannot act -> (when, what they would need); asking for one by hand is refused
    "critic value_clip gae_lambda": (lambda cfg: cfg.aux != "critic", "--aux critic (or --algo ppo)"),
    "prm_beta": (lambda cfg: cfg.aux != "prm", "--aux prm (or --algo prime)"),
    "critic_lr critic_warmup": (lambda cfg: cfg.aux == "none", "--aux critic or --aux prm"),
    "gamma": (lambda cfg: cfg.adv not in ("return", "gae") and cfg.aux != "prm", "--adv return or gae"),
    "kl_in kl_target kl_estimator": (lambda cfg: cfg.kl == 0, "--kl above 0"),
    "max_resamples": (
        lambda cfg: not filters(cfg),
        "a filter: --filter_groups True, --min_pass_rate or --max_pass_rate",
    ),
    "clip_low clip_high clip_dual surrogate value_clip": (on_policy, OFF_POLICY),
    # --tis_cap gives each token a factor of its own, which a sequence's ratio spreads over its tokens
    "ratio": (lambda cfg: on_policy(cfg) and not cfg.tis_cap, OFF_POLICY),
    "probe_problems": (lambda cfg: cfg.probe_every == 0, "--probe_every above 0"),
}


def filters(cfg) -> bool:
    return cfg.filter_groups or cfg.min_pass_rate > 0 or cfg.max_pass_rate < 1


def validate(cfg, command: str, changed=()) -> None:
    """UserError for a value that is out of range or does not go with the others; `changed` are the knobs
    that were given by hand.
    """
    for name, (low, high) in RANGES.items():
        if not low <= getattr(cfg, name) <= high:  # also refuses NaN
            raise UserError(f"--{name} {getattr(cfg, name)} is out of range: it must lie in {low}..{high}.")
    if (
        command == "train"
        and "overlong" in rewards.parse(cfg.rewards)
        and cfg.overlong_buffer > cfg.max_new_tokens
    ):
        raise UserError(
            f"--overlong_buffer {cfg.overlong_buffer} must not exceed --max_new_tokens {cfg.max_new_tokens}."
        )
    if cfg.probe_every and not cfg.probe_problems:
        raise UserError(
            "--probe_problems 0 leaves nothing to evaluate: give --probe_every 0 for no small evaluations."
        )
    if command == "train" and cfg.temperature == 0:
        raise UserError("--temperature 0 samples the same answer G times: only eval takes it.")
    if cfg.top_p > 1:
        raise UserError(f"--top_p {cfg.top_p} must not exceed 1.")
    compares = cfg.adv in ("zscore", "centred", "loo") or cfg.aux == "prm" or cfg.filter_groups
    if cfg.group == 1 and compares:
        raise UserError(
            "--group 1: the advantage compares the samples of a group, so --group must be at least 2."
        )
    if cfg.prompts * cfg.group % cfg.minibatches:
        raise UserError(
            f"--minibatches {cfg.minibatches} must divide prompts*group = {cfg.prompts * cfg.group}."
        )
    clashes = {
        "--adv gae needs the values of states, and there is no critic: give --aux critic, or --algo ppo.":
            cfg.adv == "gae" and cfg.aux != "critic",
        "--aux critic is of use only to --adv gae: give that too, or --algo ppo.":
            cfg.aux == "critic" and cfg.adv != "gae",
        "--ratio sequence has one ratio a response, so it takes one advantage a response: --adv zscore, "
        "centred or loo, without a process reward model.":
            cfg.ratio == "sequence" and (cfg.adv in ("return", "gae") or cfg.aux == "prm"),
        "--clip_dual must be above 1 (2 to 3 are usual), and --surrogate cispo has nothing to bound.":
            cfg.clip_dual > 0 and (cfg.clip_dual <= 1 or cfg.surrogate == "cispo"),
        f"--min_pass_rate {cfg.min_pass_rate} must not exceed --max_pass_rate {cfg.max_pass_rate}.":
            cfg.min_pass_rate > cfg.max_pass_rate,
    }  # fmt: skip
    for message, clash in clashes.items():
        if clash:
            raise UserError(message)
    for names, (idle, needs) in IDLE.items():
        for name in names.split():
            asked = name in changed and (getattr(cfg, name) or name in ZERO_IS_A_VALUE)
            if asked and idle(cfg):
                raise UserError(f"--{name} {getattr(cfg, name)} does nothing here: it needs {needs}.")
