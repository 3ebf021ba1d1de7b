"""From a command line to a checked configuration: algorithm rows, presets, run folders, names, ranges."""

import argparse
import difflib
import json
import zlib
from dataclasses import MISSING, fields
from pathlib import Path

from transformers import HfArgumentParser

import tasks
from runfolder import UserError


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


class Parser(HfArgumentParser):
    def error(self, message):
        raise UserError(f"{message}. `{self.prog} --help` lists every knob.")


def parse(Config, algorithms: dict, presets: dict, tables: dict, command: str, argv: list[str]):
    """(config, preset's name or ""): Config's defaults < the algorithm's row < the preset < the command line;
    the row of an --algo that was typed comes behind the preset. `tables`: knob -> the names that it takes.
    Errors: UserError.
    """
    parser = Parser(
        Config,
        prog=f"tinyr1.py {command}",
        allow_abbrev=False,
        formatter_class=Help,
        description=Config.__doc__,
    )
    parser.add_argument(
        "preset", nargs="?", help=f"one of {', '.join(presets)}" + (", or a run folder" * (command == "eval"))
    )
    for action in parser._actions:
        action.choices = [*tables[action.dest]] if action.dest in tables else action.choices
        action.help = argparse.SUPPRESS if action.dest in getattr(Config, "HIDDEN", ()) else action.help
    parser.parse_known_args(argv)  # which also gives help
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    args, unknown = parser.parse_known_args(argv)
    typed = vars(args)  # the knobs given by hand, and no others
    name = typed.pop("preset", None)
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
        options = [s for a in parser._actions for s in a.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], options, 1)
        raise UserError(
            f"Unknown knob {unknown[0]!r}.{f' Did you mean {near[0]}?' if near else ''} "
            f"`python tinyr1.py {command} --help` lists them all."
        )
    defaults = {f.name: default(f) for f in fields(Config)}
    task = preset.get("task", defaults["task"])
    if task not in [spec.split(":")[0] for spec in typed.get("task", task).split(",")]:
        preset.pop("task_args", None)  # they are another task's
    row = dict(algorithms[typed.get("algo", preset.get("algo", defaults["algo"]))])
    # an algorithm that is asked for brings all of its row; the one that a preset has by itself is its own
    settings = defaults | (preset | row if "algo" in typed else row | preset if name or not run else preset)
    if typed.get("reward_mode", "task") != "task":
        settings["overlong"] = "keep"  # a control has no other signal
    cfg = Config(**settings | typed)
    if bad := [option for option in cfg.task_args if "=" not in option]:
        raise UserError(f"--task_args takes name=value pairs, e.g. numbers=3; got {bad[0]!r}.")
    given = pairs(preset.get("task_args", []))
    # options of the preset stay unless they are named again or replaced; `name=` takes one away
    merged = tasks.join_options(tasks.find(task)[0] if given else None, given, pairs(cfg.task_args))
    cfg.task_args = [f"{k}={v}" for k, v in merged.items()]
    changed = {
        k: v for k, v in vars(cfg).items() if v != settings[k] and k not in ("name", "out", "overwrite")
    }
    cfg.name = cfg.name or "-".join(
        [name or run or short(Path(cfg.task).stem), *(f"{k}_{short(v)}" for k, v in changed.items())]
    )
    if len(cfg.name) > 100:  # a folder's name has a limit
        cfg.name = f"{cfg.name[:90]}-{zlib.crc32(cfg.name.encode()):08x}"
    validate(cfg, command, changed)
    return cfg, name or ""


def run_config(Config, presets: dict, folder: Path) -> dict:
    """The knobs of a run, with its trained model or its last checkpoint, as defaults for `eval`."""
    if not folder.is_dir():
        near = difflib.get_close_matches(str(folder), presets, 1)
        hint = f" Did you mean the preset {near[0]}?" if near else " Train first: bash run.sh"
        raise UserError(f"There is no run folder {folder}.{hint}")
    try:
        saved = json.loads((folder / "config.json").read_text())
        knobs = {f.name: saved["config"].get(f.name, default(f)) for f in fields(Config)}
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
    **dict.fromkeys("weight_decay is_cap clip_dual kl_target entropy value_clip aux_lr".split(), (0, 10**9)),
    **dict.fromkeys("aux_warmup token_budget".split(), (0, 10**15)),
    **dict.fromkeys("lr grad_clip top_p prm_beta".split(), (1e-12, 10**9)),
    **dict.fromkeys("gamma lam band_low band_high".split(), (0, 1)), "resample": (0, 127),
    "temperature": (0, 10**9), "clip_low": (0, 1), "clip_high": (0, 10**9), "seed": (0, 2**31 - 1),
}  # fmt: skip


IDLE = {  # knobs that cannot act -> (when, what they would need); asking for one by hand is refused
    "critic value_clip lam": (lambda cfg: cfg.aux != "critic", "--aux critic (or --algo ppo)"),
    "prm_beta": (lambda cfg: cfg.aux != "prm", "--aux prm (or --algo prime)"),
    "aux_lr aux_warmup": (lambda cfg: cfg.aux == "none", "--aux critic or --aux prm"),
    "gamma": (lambda cfg: cfg.adv not in ("return", "gae") and cfg.aux != "prm", "--adv return or gae"),
    "kl_in kl_target": (lambda cfg: cfg.kl == 0, "--kl above 0"),
    "resample": (lambda cfg: not filters(cfg), "a filter: --drop_dead True, --band_low or --band_high"),
}


def filters(cfg) -> bool:
    return cfg.drop_dead or cfg.band_low > 0 or cfg.band_high < 1


def validate(cfg, command: str, changed=()) -> None:
    """UserError for a value that is out of range or does not go with the others; `changed` are the knobs
    that were given by hand.
    """
    for name, (low, high) in RANGES.items():
        if not low <= getattr(cfg, name) <= high:  # also refuses NaN
            raise UserError(f"--{name} {getattr(cfg, name)} is out of range: it must lie in {low}..{high}.")
    if command == "train" and cfg.overlong == "penalise" and cfg.overlong_buffer > cfg.max_new_tokens:
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
    compares = cfg.adv in ("zscore", "centred", "loo") or cfg.aux == "prm" or cfg.drop_dead
    if cfg.group == 1 and compares:
        raise UserError(
            "--group 1: the advantage compares the samples of a group, so --group must be at least 2."
        )
    if cfg.prompts * cfg.group % cfg.minibatches:
        raise UserError(
            f"--minibatches {cfg.minibatches} must divide prompts*group = {cfg.prompts * cfg.group}."
        )
    for names, (idle, needs) in IDLE.items():
        for name in names.split():
            if name in changed and getattr(cfg, name) and idle(cfg):
                raise UserError(f"--{name} {getattr(cfg, name)} does nothing here: it needs {needs}.")
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
        f"--band_low {cfg.band_low} must not exceed --band_high {cfg.band_high}.":
            cfg.band_low > cfg.band_high,
    }  # fmt: skip
    for message, clash in clashes.items():
        if clash:
            raise UserError(message)
