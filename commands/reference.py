"""Make the published results, every figure and table of plots/reference/, from the code as it stands.

    python tinyr1.py reference --list                 the parts, and what is finished
    python tinyr1.py reference                        all parts, the longest first
    python tinyr1.py reference mini dose --jobs 2     these parts, two runs at a time on half of the cores
    python tinyr1.py reference dose --seeds 0 --pages /tmp/pages      a first look with one seed

A part is a set of training runs with several seeds, and a page. Bases and runs lie under --out; what is
finished is not made again, so the same command resumes. A base or run that was made with other settings,
another base, task or uncommitted trainer is refused: delete it to make it anew.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from commands import make_parser
from commands._cells import Job, finished, folder_of, make_all
from minibase import make
from plots import aha, dip, pages, reflection
from plots.runs import NotARun, load_run
from plots.statistics import wilson
from runtime.config import suggest
from runtime.digests import digest, model_files
from runtime.runfolder import UserError

# ---------------------------------------------------------------- the bases and the runs

# per cent, as a part of names -> share of the documents that search
SHARES = {"0": 0.0, "0_1": 0.001, "1": 0.01, "3": 0.03, "10": 0.1, "30": 0.3, "60": 0.6}
# millions of parameters, as a part of names -> the shape of a base
SIZES = {
    "0_1": "--hidden 64 --layers 2 --heads 1 --inner 128",
    "0_3": "--hidden 96 --layers 3 --heads 3 --inner 256",
    "0_8": "",
    "3_9": "--hidden 256 --layers 4 --heads 4 --inner 1024",
}
MILLIONS = {name: float(name.replace("_", ".")) for name in SIZES}

# Countdown alone, which a base then knows after fewer tokens
ALONE = "--countdown_share 0.85 --multiply_share 0"
# the shipped base, which can search, after documents with other habits
FURTHER = f"--start minibase {ALONE} --tokens 1e6 --lr 1e-3"
# name -> options of make-base
BASES = {
    "never": f"{ALONE} --search_share 0 --tokens 5e6",
    **{f"share_{name}": f"{FURTHER} --search_share {share}" for name, share in SHARES.items()},
    "persists": f"{FURTHER} --give_up 0",
    "dip": "--start minibase --code_share 0.25 --tokens 3e6 --lr 2e-3",
    "instruct": "--start minibase --search_share 0 --tokens 3e5 --lr 1e-3",
    "hacks": "--start minibase --hack_share 0.01 --tokens 1e6 --lr 1e-3",
    **{f"size_{name}": f"{shape} {ALONE} --tokens 4e6".strip() for name, shape in SIZES.items()},
}

# equal sampled tokens, and evaluations close enough to see when searching appears
EQUAL = "--token_budget 500000 --steps 100000 --probe_every 4"
HOLED = "mini --task_args numbers=3 high=13 wording=short reward=binary verifier=holed"
# name -> arguments of train; {name} is the folder of a base
RUNS = {
    "mini": "mini",
    "multiply": "mini-multiply",
    "dip": "mini-dip --model {dip}",
    "drgrpo": "mini --algo drgrpo",
    "never": "mini --model {never}",
    "persists": "mini --model {persists}",
    "random": "mini --rewards random",
    "format": "mini --rewards format",
    "inverted": "mini --rewards inverted",
    **{f"share_{name}": f"mini {EQUAL} --model {{share_{name}}}" for name in SHARES},
    **{f"size_{name}": f"mini {EQUAL} --model {{size_{name}}}" for name in SIZES},
    **{
        f"batch-{n}": f"mini {EQUAL} --prompts {n // 8} --probe_every {max(1, 1536 // n)}"
        for n in (32, 64, 256, 1024)
    },
    "instruct": "mini --model {instruct}",
    "holed": HOLED,
    "holed-hacks": f"{HOLED} --model {{hacks}}",
}

# ---------------------------------------------------------------- the parts


class Part(NamedTuple):
    """A page: its title, {name in the table: run}, {suffix of a picture: function of the groups}. Before it
    come {command of tinyr1.py: a file that it leaves, or ""}, with the fields of `Plan` and {seed}, once per
    seed where that occurs. Where the file is, the command is not run again. more(plan) is added to the page.
    """

    title: str
    runs: dict[str, str] = {}
    figures: dict[str, Callable] = {}
    commands: dict[str, str] = {}
    more: Callable[["Plan"], str] = lambda plan: ""


def odds(share: float) -> float:
    """log((1-p)/p): about that many rounds of RL repair a base that does the long way with share p."""
    return math.log((1 - share) / share)


# where log((1-p)/p) has no value
NEVER = odds(SHARES["0_1"]) + 1.5
DOSE = {f"{100 * share:g} %": odds(share) if share else NEVER for share in SHARES.values()}


COMPARE = "compare_algos --out {out}/algorithms --report {pages}/algorithms"
GREEDY = "eval --temperature 0 --eval_samples 1 --out {out}"


def greedy_table(plan: "Plan") -> str:
    """How often the bases search: sampled at temperature 1, and greedily."""
    lines = [
        "| documents that search | sampled responses that search | greedy ones | greedy accuracy |",
        "|---" * 4 + "|",
    ]
    for name in SHARES:
        record = json.loads((plan.out / "bases" / f"share_{name}" / "record.json").read_text())
        sampled = record["held_out"]["countdown"]
        (greedy,) = json.loads((plan.out / f"eval-greedy-{name}" / "eval.json").read_text())["sets"].values()
        shares = (sampled["search_share"], greedy["search_share"], greedy["accuracy"])
        lines.append(f"| {100 * SHARES[name]:g} % | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    return "\n".join(lines)


# evaluations at problems of so many numbers
WIDTHS = ("3", "4", "5")
WIDER = (
    "eval --task_args numbers={n} high=13 wording=short --eval_problems 100 --eval_samples 256 "
    "--max_new_tokens 320 --out {{out}} --model {model} --name wide-{n}-{name}"
)
GENERALISE = {
    WIDER.format(n=n, model=model, name=name): ""
    for n in WIDTHS
    for model, name in (("minibase", "base"), ("{out}/mini-s{seed}/final", "s{seed}"))
}


def generalisation_table(plan: "Plan") -> str:
    """What base and trained models make of problems with more numbers than they were trained on, and how many
    problems only one of them ever solves.
    """
    keys = ("accuracy", "pass@16", "pass@256", "search_share", "cut_share")
    heads = "accuracy | pass@16 | pass@256 | responses that search | cut off | tokens | attempts"
    levels = [f"| numbers | model | {heads} |", "|---" * 9 + "|"]
    ever = [f"| numbers | seed | {' | '.join(aha.EVER_SOLVED)} |", "|---" * 6 + "|"]
    for n in WIDTHS:
        for name in ("base", *(f"s{seed}" for seed in plan.seeds)):
            folder = plan.out / f"eval-wide-{n}-{name}"
            (found,) = json.loads((folder / "eval.json").read_text())["sets"].values()
            cells = [f"{found[key]:.1%}" for key in keys]
            cells += [f"{found[key]:.1f}" for key in ("tokens", "attempts")]
            levels.append(f"| {n} | {name} | {' | '.join(cells)} |")
            if name != "base":
                paths = {"base": plan.out / f"eval-wide-{n}-base", "trained": folder}
                (_, base), (_, trained) = aha.sides_of(paths, "countdown") or []
                counts = aha.count_solved(base, trained, list(base))
                intervals = [wilson(count, len(base)) for count in counts.values()]
                cells = [f"{share:.0%} [{low:.0%}, {high:.0%}]" for share, low, high in intervals]
                ever.append(f"| {n} | {name} | {' | '.join(cells)} |")
    about = "Problems solved at least once in 256 samples, by whom, with 95 % Wilson intervals:"
    return "\n".join([*levels, "", about, "", *ever])


def dip_table(plan: "Plan") -> str:
    """How far the length of the training samples falls, run by run."""
    lines = ["| run | tokens at the start | the fewest | at the end |", "|---" * 4 + "|"]
    for path in plan.trained("dip"):
        (_, start), (step, fewest), (_, end) = dip.turns(load_run(path))
        lines.append(f"| {path.name} | {start:.0f} | {fewest:.0f} at step {step:.0f} | {end:.0f} |")
    return "\n".join(["Of the training samples, smoothed over the steps:", "", *lines])


PARTS = {
    "dose": Part(
        "Dose and response: how many documents must search?",
        {f"{100 * share:g} %": f"share_{name}" for name, share in SHARES.items()},
        {
            "": pages.against(
                "How many of the base's documents must search?",
                DOSE,
                "share p of searching documents, at log((1-p)/p)",
                {x: name for name, x in DOSE.items()},
            ),
            "_tokens": pages.over_tokens("RL on bases whose documents search seldom or often"),
        },
        {f"{GREEDY} --model {{out}}/bases/share_{name} --name greedy-{name}": "" for name in SHARES},
        greedy_table,
    ),
    "algorithms": Part(
        "Algorithms",
        commands={f"{COMPARE} --seeds {{seeds}} --jobs {{jobs}}": ""},
    ),
    "rewards": Part(
        "Is it the reward?",
        {"the task's reward": "mini", "random": "random", "format": "format", "inverted": "inverted"},
        {"": pages.over_tokens("GRPO with the rewards of controls")},
    ),
    "controls": Part(
        "What RL builds on: three bases",
        {"30 % search, some give up": "mini", "no document searches": "never", "none gives up": "persists"},
        {"": pages.seed_curves, "_growth": pages.seed_growth},
    ),
    "size": Part(
        "Size: from how many parameters does RL find searching?",
        {f"{n} M": f"size_{name}" for name, n in MILLIONS.items()},
        {
            "": pages.against(
                "Bases of four sizes, the same corpus and tokens",
                {f"{n} M": math.log10(n) for n in MILLIONS.values()},
                "parameters",
                {math.log10(n): f"{n} M" for n in MILLIONS.values()},
            )
        },
    ),
    "batch": Part(
        "Batch: samples per step at equal tokens",
        {f"{n} samples per step": f"batch-{n}" for n in (32, 64, 256, 1024)},
        {"": pages.over_tokens("Samples per step, at equal sampled tokens")},
    ),
    "instruct": Part(
        "Base or instruct?",
        {"base": "mini", "after SFT on short answers": "instruct"},
        {"": pages.over_tokens("The base, and the base after a little SFT on short answers")},
    ),
    "generalisation": Part(
        "Three numbers trained, four and five tested",
        {"mini": "mini"},
        commands=GENERALISE,
        more=generalisation_table,
    ),
    "reflection": Part(
        "Does reflecting lead to right answers?",
        {"mini": "mini"},
        commands={"reflect {out}/mini-s{seed}": "{out}/mini-s{seed}/reflect.json"},
        more=lambda plan: reflection.table_of_seeds(plan.trained("mini")),
    ),
    "length": Part(
        "Length bias: GRPO and Dr. GRPO",
        {"grpo": "mini", "drgrpo": "drgrpo"},
        {"": pages.over_tokens("A mean per response against a constant")},
    ),
    "hack": Part(
        "A reward to hack",
        {"exact verifier": "mini", "holed": "holed", "holed, 1 % of the documents hack": "holed-hacks"},
        {"": pages.over_tokens("A verifier that believes what the response says", pages.HACKED)},
    ),
    "dip": Part("The dip", {"mini-dip": "dip"}, {"": pages.seed_dip}, more=dip_table),
    "multiply": Part("Multiplication", {"mini-multiply": "multiply"}, {"": pages.seed_curves}),
    "mini": Part(
        "The miniature on Countdown: `bash run.sh`",
        {"mini": "mini"},
        {"": pages.seed_curves, "_growth": pages.seed_growth, "_aha": pages.seed_aha},
    ),
}  # fmt: skip


# ---------------------------------------------------------------- making what is missing


class Plan:
    """What the parts need, and what of it is still missing."""

    def __init__(self, out: Path, pages: Path, seeds: list[str], at_once: int = 1):
        self.out, self.pages, self.seeds, self.at_once = out, pages, seeds, at_once
        self.folders = {name: out / "bases" / name for name in BASES}

    def base(self, name: str) -> Iterable[Job]:
        """Errors: UserError if it was made otherwise."""
        argv = ["make-base", *shlex.split(BASES[name]), "--out", str(self.folders[name]), "--overwrite"]
        path = self.folders[name] / "record.json"
        if not path.exists():
            yield Job(f"base {name}", argv)
            return
        record, start = json.loads(path.read_text()), make.parse(argv[1:]).start
        same = record["command"] == "python tinyr1.py " + shlex.join(argv)
        # a record of before has no digest
        if not same or record.get("start_digest") not in (None, digest(model_files(start))):
            raise UserError(
                f"{self.folders[name]} was made with other options or from another base: delete it to make "
                "it anew."
            )

    def bases_of(self, words: str) -> Iterable[Job]:
        for name in BASES:
            if f"{{{name}}}" in words:
                yield from self.base(name)

    def train(self, run: str, seed: str) -> list[str]:
        """The arguments of `train`."""
        own = f"--seed {seed} --out {shlex.quote(str(self.out))} --name {run}-s{seed}"
        return shlex.split(f"{RUNS[run].format_map(self.folders)} {own}")

    def run(self, run: str) -> Iterable[Job]:
        for seed in self.seeds:
            argv = self.train(run, seed)
            if not finished(argv):
                yield Job(argv[-1], ["train", *argv])

    def trained(self, run: str) -> list[Path]:
        """The folders of the finished runs."""
        every = (self.train(run, seed) for seed in self.seeds)
        return [folder_of(argv) for argv in every if finished(argv)]

    def commands(self, name: str) -> Iterable[Job]:
        """Those of a part."""
        for i, (words, file) in enumerate(PARTS[name].commands.items()):
            for seed in self.seeds if "{seed}" in words else self.seeds[:1]:
                fields = {
                    "out": self.out, "pages": self.pages, "seed": seed, "seeds": ",".join(self.seeds),
                    "jobs": self.at_once,
                }  # fmt: skip
                if not file or not Path(file.format_map(fields)).exists():
                    argv = shlex.split(words.format_map(fields))
                    yield Job(f"{name} {argv[0]} {i} seed {seed}", argv)

    def make(self, jobs: Iterable[Job]) -> list[str]:
        """The names of those that failed."""
        return make_all([*{job.name: job for job in jobs}.values()], self.at_once, self.out)


def list_part(name: str, plan: Plan) -> None:
    """Say what is missing."""
    part = PARTS[name]
    bases = {job.name for run in part.runs.values() for job in plan.bases_of(RUNS[run])}
    # a run whose base is missing cannot be looked up
    runs = ["the runs"] if bases else [job.name for run in part.runs.values() for job in plan.run(run)]
    told = f"{', '.join([*bases, *runs]) or 'nothing'} missing"
    if not part.runs:
        told = f"made by {' and '.join(words.split()[0] for words in part.commands)}, which resumes"
    print(f"{name:12}{part.title} ({told})")


def make_part(name: str, plan: Plan) -> int:
    """Make the bases, the runs, what else is measured, and the page. 1 if something failed: then what does
    not need it is made all the same.
    """
    part = PARTS[name]
    print(f"{name}: {part.title}", flush=True)
    failed = plan.make(job for run in part.runs.values() for job in plan.bases_of(RUNS[run]))
    failed = failed or plan.make(job for run in part.runs.values() for job in plan.run(run))
    failed = failed or plan.make(plan.commands(name))
    if part.runs:
        runs = part.runs.values()
        typed = [f"python tinyr1.py reference {name}"]
        typed += [f"python tinyr1.py train {shlex.join(plan.train(run, 'SEED'))}" for run in runs]
        groups = {label: [load_run(path) for path in plan.trained(run)] for label, run in part.runs.items()}
        # what failed may be what it tells of
        more = "" if failed else part.more(plan)
        try:
            print(pages.write(plan.pages / name, part.title, typed, groups, part.figures, more))
        except NotARun as error:
            raise UserError(f"No page for {name}: {error}") from error
    if failed:
        print(f"failed: {', '.join(failed)}; see {plan.out / 'logs'}", file=sys.stderr)
    return bool(failed)


def main(argv: list[str]) -> int:
    parser = make_parser("reference", "[part ...] [--option value ...]", __doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all of them")
    parser.add_argument("--list", action="store_true", help="say what is finished, and make nothing")
    parser.add_argument("--jobs", type=int, default=1, help="bases or runs at a time")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--out", default="runs/reference", help="folder of the bases and the runs")
    parser.add_argument("--pages", default="plots/reference", help="folder of the pages")
    args = parser.parse_args(argv)
    chosen = args.parts or list(PARTS)
    for name in chosen:
        if name not in PARTS:
            raise UserError(f"Unknown part {name!r}.{suggest(name, PARTS)} There are {', '.join(PARTS)}.")
    plan = Plan(Path(args.out), Path(args.pages), args.seeds.split(","), args.jobs)
    if args.list:
        for name in chosen:
            list_part(name, plan)
        return 0
    return max(make_part(name, plan) for name in chosen)
