"""Compare groups of runs, a group being the same settings with several seeds, at equal sampled tokens.

    python tinyr1.py plot algorithms --out REPORT grpo=runs/grpo-s0,runs/grpo-s1 ppo=runs/ppo-s0,runs/ppo-s1

writes REPORT.png, REPORT.pdf (held-out accuracy and response length against sampled tokens: means, and the
range over the seeds) and REPORT.md (a table). The text from its last heading on is kept: people write it.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots.charts import COLORS, STYLES, color, in_percent, save, sheet
from plots.runs import History, NotARun, load_run, number

# the accuracy whose price the table gives
HALF = 0.5
NOTES = "## What this shows, and what it does not"
DEFAULT_NOTES = """
*To be written by whoever ran it.* Equal sampled tokens are not equal seconds: a critic, a process reward
model or a reference needs passes of its own. Every row has the learning rate and the other options of the
command, none was tuned for it, and a range over few seeds is no confidence interval. With one optimizer step
per rollout the ratio is 1, and algorithms that differ in their clip alone are the same algorithm.
"""


def held_out(run: History, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Sampled tokens (n,) and held-out values (n,) of a key, from all evaluations and probes."""
    tokens, points = 0.0, []
    for row in run.rows:
        tokens = number(row["sampled_tokens"]) if "sampled_tokens" in row else tokens
        value = number(row.get(f"eval/{key}", row.get(f"probe/{key}")))
        if np.isfinite(value):
            points.append((tokens, value))
    return tuple(np.array(points, float).reshape(-1, 2).T)


def spread(runs: list[History], key: str):
    """(tokens, mean, lowest, highest) over the runs, as far as all of them go; each (n,)."""
    series = [(x, y) for x, y in (held_out(run, key) for run in runs) if len(x)]
    grid = np.linspace(0, min((x[-1] for x, _ in series), default=0.0), 60)
    values = np.array([np.interp(grid, x, y) for x, y in series]).reshape(len(series), 60)
    return grid, values.mean(0), values.min(0), values.max(0)


def figures_of(run: History) -> dict:
    """The figures for the table of a run that was evaluated; None where there is none."""
    x, y = held_out(run, "accuracy")
    steps = [row for row in run.rows if "reward" in row]
    seconds = np.cumsum([number(row.get("time/step", 0)) for row in steps])
    reached = np.flatnonzero(y >= HALF)
    tokens_to = x[reached[0]] if len(reached) else None
    seconds_to = None
    if tokens_to is not None:
        at = [i for i, row in enumerate(steps) if row.get("sampled_tokens", 0) <= tokens_to]
        seconds_to = seconds[at[-1]] if at else 0.0
    lengths, dead = held_out(run, "tokens")[1], run.series("dead_groups")[1]
    return {
        "base": y[0], "final": y[-1], "tokens": lengths[-1] if len(lengths) else None, "tokens_to": tokens_to,
        "seconds_to": seconds_to, "seconds": seconds[-1] if len(seconds) else 0.0,
        "peak_gb": run.summary.get("peak_gb"),
        "dead": dead.mean() if len(dead) else 0.0, "skipped": int(run.series("skipped")[1].sum()),
        "norm": max(run.series("grad_norm")[1], default=None),
    }  # fmt: skip


def mean_range(values, form: str) -> str:
    """`mean (lowest–highest)` of the known values, the mean alone where they agree, - where none is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, low, high = (format(value, form) for value in (np.mean(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low}–{high})"


HEADS = (
    "algorithm", "seeds", "held-out accuracy, base", "at the end", "doubled", "tokens per response",
    f"sampled tokens to {HALF:.0%}", f"seconds to {HALF:.0%}", "seconds in all", "peak GB", "dead groups",
    "skipped steps", "largest gradient norm",
)  # fmt: skip


def table(groups: dict[str, list[History]], failed: dict[str, int]) -> str:
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += [f"| {' | '.join(cells(name, runs, failed.get(name, 0)))} |" for name, runs in groups.items()]
    lines += [f"| {name} | {count} failed |" for name, count in failed.items() if name not in groups]
    return "\n".join(lines)


def cells(name: str, runs: list[History], failed: int) -> list[str]:
    """A group's row of the table, in the order of HEADS."""
    figures = [figures_of(run) for run in runs]
    column = {key: [own[key] for own in figures] for key in figures[0]}
    doubled = sum(own["final"] >= 2 * own["base"] for own in figures)
    reached = sum(tokens is not None for tokens in column["tokens_to"])
    return [
        name,
        f"{len(runs)}" + (f", {failed} failed" if failed else ""),
        mean_range(column["base"], ".1%"),
        mean_range(column["final"], ".1%"),
        f"{doubled}/{len(runs)}",
        mean_range(column["tokens"], ".0f"),
        mean_range(column["tokens_to"], ",.0f") + f" in {reached}/{len(runs)}",
        mean_range(column["seconds_to"], ".0f"),
        mean_range(column["seconds"], ".0f"),
        mean_range(column["peak_gb"], ".2f"),
        mean_range(column["dead"], ".0%"),
        str(sum(column["skipped"])),
        mean_range(column["norm"], ".2f"),
    ]


# key of an evaluation -> title, unit, whether it is a share
PANELS = {
    "accuracy": ("Held-out accuracy", "share of responses", True),
    "tokens": ("Response length on held-out problems", "tokens", False),
}


def look(i: int, name: str) -> dict:
    """Colour and line of the i-th group; a control (`algorithm:reward mode`) is drawn thin."""
    style = STYLES[i // len(COLORS) % len(STYLES)]
    return {"color": color(i), "ls": style, "lw": 1.2 if ":" in name else 2.2}


def draw(groups: dict[str, list[History]]) -> Figure:
    first = next(iter(groups.values()))[0]
    model = Path(first.config.get("model", "")).name
    title = f"Algorithms at equal sampled tokens: {model}, {first.config.get('task')}"
    note = "Lines: mean over the seeds. Bands: lowest and highest. After a colon: a control's reward."
    handles = [Line2D([], [], label=name, **look(i, name)) for i, name in enumerate(groups)]
    fig = sheet(title, note, handles, 12, 8.0, 0.12)
    for ax, (key, panel) in zip(fig.subplots(1, 2), PANELS.items()):
        draw_panel(ax, key, panel, groups)
    return fig


def draw_panel(ax, key: str, panel: tuple[str, str, bool], groups: dict[str, list[History]]) -> None:
    """Held-out values of a key against sampled tokens; panel: as in PANELS."""
    title, unit, share = panel
    for i, (name, runs) in enumerate(groups.items()):
        if not any(len(held_out(run, key)[0]) for run in runs):
            continue
        x, mean, low, high = spread(runs, key)
        ax.plot(x, mean, **look(i, name))
        ax.fill_between(x, low, high, color=look(i, name)["color"], alpha=0.1, lw=0)
    ax.set(title=title, ylabel=unit, xlabel="sampled tokens", ylim=(0, None), xlim=(0, None))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    if share:
        in_percent(ax)


def notes_of(report: Path, default: str, what: str) -> str:
    """What people wrote into REPORT.md from the heading NOTES on; the default where there is no report yet.
    Errors: NotARun if there is a page or a picture of that name that is no `what`.
    """
    png, md = (report.with_name(report.name + suffix) for suffix in (".png", ".md"))
    old = md.read_text() if md.exists() else ""
    if md.exists() and NOTES not in old or png.exists() and not md.exists():
        raise NotARun(f"{png} or {md.name} exists and is no {what}: name another report.")
    return old.split(NOTES, 1)[1] if old else default


def write(paths: dict[str, list[Path]], report: Path, command: str = "", failed=None) -> None:
    """REPORT.png, .pdf and .md of these groups' runs, as far as they were evaluated. Errors: NotARun."""
    groups = {}
    for name, folders in paths.items():
        runs = [run for run in map(load_run, folders) if len(held_out(run, "accuracy")[0])]
        if runs:
            groups[name] = runs
    if not groups:
        raise NotARun("there is no run with an evaluation to compare.")
    png, md = (report.with_name(report.name + suffix) for suffix in (".png", ".md"))
    notes = notes_of(report, DEFAULT_NOTES, "comparison of algorithms")
    save(draw(groups), report.parent, report.name)
    about = about_runs(next(iter(groups.values()))[0])
    typed = f"`{command}`\n\n" if command else ""
    md.write_text(
        f"# Algorithms at equal sampled tokens\n\n![accuracy and length]({png.name})\n\n{typed}{about}\n\n"
        f"{table(groups, failed or {})}\n\n{NOTES}{notes}"
    )
    print(f"written: {png}, {md}")


def about_runs(run: History) -> str:
    """What the cells of the table are, and where the runs, of which this is one, were made."""
    env, budget = run.environment, run.config.get("token_budget")
    machine = env.get("gpu") or f"{env.get('cpus')} cores, {env.get('threads')} threads"
    if not env.get("gpu") and env.get("processor"):
        machine += f" of {env['processor']}"
    ends = f"A run ends after {budget:,} sampled tokens. " if budget else ""
    return (
        f"{ends}Cells: mean (lowest–highest) over the seeds. Seconds are those of training steps, "
        f"evaluations apart. {machine}; torch {env.get('torch')}, transformers {env.get('transformers')}, "
        f"commit {(env.get('commit') or '?')[:10]}."
    )
