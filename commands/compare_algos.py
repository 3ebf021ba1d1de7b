"""Compare algorithms on the same task with equal sampled tokens and several seeds: one figure and one table.

    python tinyr1.py compare_algos                         every algorithm, three seeds, the miniature
    python tinyr1.py compare_algos --algos grpo,ppo --seeds 0,1 --token_budget 100000
    python tinyr1.py compare_algos 1.5b --token_budget 50000000 --out runs/algos-1.5b --report algos-1.5b
    python tinyr1.py compare_algos --algos grpo,grpo:random,grpo:format,grpo:inverted --report controls

A cell is an algorithm, or `algorithm:control` for a control run, with one seed. Each cell has its own run
folder under --out. Everything else on the command line is a preset or an option of training, for all cells.
The same command resumes: finished cells are not run again. A cell that was run with other settings, another
base model, task or trainer is refused. What cells say is in OUT/logs; with --jobs 2 two share the cores.
"""

import shlex
from collections import Counter
from pathlib import Path

import tinyr1
from commands import make_parser
from commands._cells import Job, finished, make_all
from plots import algorithms
from plots.runs import NotARun
from runtime.config import check_gpu
from runtime.presets import PRESETS
from runtime.runfolder import UserError

# The token budget ends a cell.
ALL = "--steps 100000".split()
# One to two minutes per cell on two cores; two optimizer steps per rollout, or the ratio would always be 1.
MINI = "--token_budget 500000 --minibatches 2 --probe_every 4 --eval_samples 2".split()
CONTROLS = ("random", "format", "inverted")


def cell_command(out: str, options: list[str], algo: str, seed: str) -> list[str]:
    """The arguments of `train` for a cell. Errors: UserError without a budget."""
    named = bool(options) and not options[0].startswith("--")
    preset, given = (options[0], options[1:]) if named else ("mini", options)
    if preset != "mini" and "--token_budget" not in given:
        raise UserError("Give --token_budget, the sampled tokens per cell: only mini has a default.")
    algorithm, _, mode = algo.partition(":")
    if algorithm not in tinyr1.ALGORITHMS or mode not in ("", *CONTROLS):
        raise UserError(
            f"--algos {algo}: expected one of {', '.join(tinyr1.ALGORITHMS)}, alone or with one of "
            f"{', '.join(':' + mode for mode in CONTROLS)} after it."
        )
    # a typed --algo that is the preset's own changes nothing, so its row is typed out
    row = []
    if algorithm == PRESETS.get(preset, {}).get("algo", tinyr1.Train.algo):
        row = [word for k, v in tinyr1.ALGORITHMS[algorithm].items() for word in (f"--{k}", str(v))]
    own = ["--algo", algorithm, "--seed", seed, "--out", out]
    own += ["--rewards", mode] if mode else []
    own += ["--name", f"{algo.replace(':', '-')}-s{seed}"]
    return [preset, *ALL, *(MINI if preset == "mini" else []), *row, *given, *own]


def main(argv: list[str]) -> int:
    parser = make_parser("compare_algos", "[preset] [--option value ...]", __doc__)
    parser.add_argument(
        "--algos", default=",".join(tinyr1.ALGORITHMS), help="algorithms or algorithm:control, with commas"
    )
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--out", default="runs/algos", help="folder of the cells' run folders")
    parser.add_argument("--report", help="path of figure and table, without suffix (default: OUT/algorithms)")
    args, options = parser.parse_known_args(argv)
    report = Path(args.report or Path(args.out) / "algorithms")
    cells = [(algo, seed) for seed in args.seeds.split(",") for algo in args.algos.split(",")]
    commands = {cell: cell_command(args.out, options, *cell) for cell in cells}
    # all cells are checked before any runs
    check_gpu(*tinyr1.parse(next(iter(commands.values()))))
    pending = {
        cell: Job(command[-1], ["train", *command])
        for cell, command in commands.items()
        if not finished(command)
    }
    failures = make_all([*pending.values()], args.jobs, Path(args.out))
    failed = Counter(algo for (algo, _), job in pending.items() if job.name in failures)
    paths: dict[str, list[Path]] = {algo: [] for algo in args.algos.split(",")}
    for (algo, _), command in commands.items():
        if command[-1] not in failures:
            paths[algo].append(Path(args.out) / command[-1])
    typed = shlex.join(["python", "tinyr1.py", "compare_algos", *argv])
    try:
        algorithms.write(paths, report, typed, failed)
    except NotARun as error:
        raise UserError(f"Nothing to compare: {error}") from error
    return 1 if failed else 0
