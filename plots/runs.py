"""Run folders, finished or not, as their files tell them. Imports neither torch nor matplotlib."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# ---------------------------------------------------------------- settings of older versions

# Options that have another name now: older run folders have the old one in their config.json.
OLD_NAMES = {
    "weight": "loss_norm",
    "lam": "gae_lambda",
    "aux_lr": "critic_lr",
    "aux_warmup": "critic_warmup",
    "is_cap": "tis_cap",
    "drop_dead": "filter_groups",
    "band_low": "min_pass_rate",
    "band_high": "max_pass_rate",
    "resample": "max_resamples",
    "reward_mode": "rewards",
    "overlong": "rewards",
}
CONTROLS = {"format_only": "format", "random": "random", "inverted": "inverted"}


def current_names(settings: dict) -> dict:
    """The settings of a run folder under the names that the options have now."""
    settings = dict(settings)
    mode, overlong = settings.pop("reward_mode", None), settings.pop("overlong", None)
    if mode or overlong:
        task = "task,overlong" if overlong == "penalise" else "task"
        settings["rewards"] = CONTROLS.get(mode, task)
    if overlong == "mask":
        settings["mask_truncated"] = True
    return {OLD_NAMES.get(name, name): value for name, value in settings.items()}


# ---------------------------------------------------------------- a run folder


class NotARun(Exception):
    """No readable run; the message says why and what to do."""


@dataclass
class History:
    """The files of a run folder, as far as they were written.

    rows: one dict per step, in order, with the keys of training and those of evaluations (eval/, probe/).
    base: what the growth is counted from (add_growth). preset: "" of an older run or one without a preset.
    differences: {option: value} from the preset; {} of an older run.
    """

    name: str
    path: Path
    config: dict
    environment: dict
    summary: dict
    rows: list[dict]
    base: tuple | None = None
    preset: str = ""
    differences: dict = field(default_factory=dict)

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a key, where it is a finite number."""
        points = [(row["step"], value) for row in self.rows if math.isfinite(value := number(row.get(key)))]
        return tuple(np.array(points, float).reshape(-1, 2).T)


def number(value) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def load_run(path: str | Path) -> History:
    """Read a run folder, finished or not, and add the growth keys (add_growth). Errors: NotARun."""
    path = Path(path).resolve()
    try:
        record = json.loads((path / "config.json").read_text())
        config, environment = current_names(record["config"]), record.get("environment", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotARun(
            f"{path} is not a run folder: its config.json cannot be read ({type(error).__name__}: {error}). "
            "Give a folder that training has written, such as runs/mini."
        ) from error
    rows = read_metrics(path / "metrics.jsonl")
    return History(
        name=path.name,
        path=path,
        config=config,
        environment=environment,
        summary=read_dict(path / "summary.json"),
        rows=rows,
        base=add_growth(rows),
        preset=str(record.get("preset") or ""),
        differences=current_names(record.get("differences") or {}),
    )


def read_metrics(path: Path) -> list[dict]:
    """The rows of metrics.jsonl, those of one step merged, in order of the steps; [] without the file."""
    rows: dict[float, dict] = {}
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        try:
            row = json.loads(line)
            if math.isfinite(row["step"]):
                rows.setdefault(row["step"], {}).update(row)
        # empty, or half-written by a run in progress
        except (ValueError, KeyError, TypeError):
            pass
    return [rows[step] for step in sorted(rows)]


def read_dict(path: Path) -> dict:
    """A JSON file's object; {} if it is missing or malformed."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def load_runs(paths: list) -> list[History]:
    """Each run once, under a name just long enough to tell it from the others. Errors: NotARun."""
    runs = list({run.path: run for run in map(load_run, paths)}.values())
    depth = 1
    while len({run.path.parts[-depth:] for run in runs}) < len(runs):
        depth += 1
    for run in runs:
        run.name = "/".join(run.path.parts[-depth:]) + (f" ({control(run)})" if control(run) else "")
    return runs


# ---------------------------------------------------------------- what a run was and how far it is


def control(run: History) -> str:
    """What to call a control run, whose reward is not the task's; "" for any other."""
    rewards = run.config.get("rewards") or "task"
    return "" if "task" in rewards else f"control: {rewards} reward"


def so_far(config: dict, step: float) -> str:
    """How far a run is."""
    if budget := config.get("token_budget"):
        return f"step {step:.0f}, of {budget:,} tokens"
    return f"step {step:.0f} of {config.get('steps', '?')}"


def longest_in_pretraining(run: History) -> float:
    """Attempts of the longest search in the base model's pre-training, by its record.json; NaN if unknown."""
    model = run.config.get("model") or ""
    folder = Path(__file__).parents[1] / model if model == "minibase" else Path(model)
    return number(read_dict(folder / "record.json").get("longest_search", {}).get("attempts"))


def first_last(run: History, key: str) -> tuple[float, float] | None:
    """First and last held-out value of a key; None before there are two."""
    x, y = np.hstack([run.series("eval/" + key), run.series("probe/" + key)])
    return (y[x.argmin()], y[x.argmax()]) if len(x) > 1 else None


# ---------------------------------------------------------------- where the growth comes from


def decompose(base: tuple, now: tuple) -> dict[str, float]:
    """Split the growth of the attempts per response, from base to now, into parts that sum to it.

    base and now: (attempts per response, share s that searches, attempts w within a search). With d the
    attempts of a response that does not search, attempts = (1-s) d + s w. Selection is what the change of s
    alone would have brought, persistence what the change of w alone would have; both is the product of the
    two changes, which belongs to neither; rest is due to d. Where nothing searches, w is unknown (NaN) and
    counts as unchanged.
    """
    (a0, s0, w0), (a, s, w) = base, now
    w0, w = known_or_other(w0, w), known_or_other(w, w0)
    if s0 < 1:
        d0 = (a0 - s0 * w0) / (1 - s0)
    else:
        d0 = (a - s * w) / (1 - s) if s < 1 else 0.0
    selection, persistence, both = (s - s0) * (w0 - d0), s0 * (w - w0), (s - s0) * (w - w0)
    rest = a - a0 - selection - persistence - both
    return {
        "growth_selection": selection,
        "growth_persistence": persistence,
        "growth_both": both,
        "growth_rest": rest,
        "growth": a - a0,
    }


def known_or_other(value: float, other: float) -> float:
    """The value if it is known, else the other one, else 0."""
    return next((known for known in (value, other) if math.isfinite(known)), 0.0)


def add_growth(rows: list[dict]) -> tuple | None:
    """Add decompose's keys to the rows; returns their base: the first evaluation, or else the first step."""
    # (prefix, row): attempts, share that searches, attempts within a search
    found = {}
    for prefix in ("eval/", "", "probe/"):
        for i, row in enumerate(rows):
            keys = ("attempts", "search_share", "attempts_within_search")
            values = tuple(number(row.get(prefix + key)) for key in keys)
            if all(map(math.isfinite, values[:2])):
                found[prefix, i] = values
    base = next(iter(found.values()), None)
    for (prefix, i), values in found.items():
        rows[i].update({prefix + key: value for key, value in decompose(base, values).items()})
    return base
