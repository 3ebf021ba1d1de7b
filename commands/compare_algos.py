"""Every algorithm on the same task at equal sampled tokens, some seeds each: one figure and one table.

    python tinyr1.py compare_algos                         nine algorithms, three seeds, the miniature
    python tinyr1.py compare_algos --algos grpo,ppo --seeds 0,1 --token_budget 100000
    python tinyr1.py compare_algos 1.5b --token_budget 50000000 --out runs/algos-1.5b --report algos-1.5b
    python tinyr1.py compare_algos --algos grpo,grpo:random,grpo:format,grpo:inverted --report controls

A cell is an algorithm, or `algorithm:control` for a control run, with a seed; it is a run folder of its own
under --out. The figure and the table are written there, too, unless --report names another place.
Everything else on the command line is a preset or an option of all cells. The same command resumes where it
was stopped: finished cells are not run again, and cells of other settings, or of another base model, task or
trainer, are refused.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import tinyr1
from plots import algorithms
from plots.runs import NotARun
from runtime.config import check_gpu
from runtime.presets import PRESETS
from runtime.runfolder import DIGESTS, HERE, UserError, changed_digests, differing, provenance

ALL = "--steps 100000".split()  # it is the token budget that ends a cell
# one to two minutes a cell on two cores; two optimizer steps a rollout, or the ratio would always be 1
MINI = "--token_budget 200000 --minibatches 2 --probe_every 4 --eval_samples 2".split()
CONTROLS = ("random", "format", "inverted")
FREE = {"out", "overwrite", "name", "device", "precision"}  # what a finished cell may differ in


def cell_command(args, options: list[str], algo: str, seed: str) -> list[str]:
    """The arguments of `train` for a cell. Errors: UserError without a budget."""
    named = bool(options) and not options[0].startswith("--")
    preset, given = (options[0], options[1:]) if named else ("mini", options)
    if preset != "mini" and "--token_budget" not in given:
        raise UserError(f"Give --token_budget, the sampled tokens of a cell: {preset} has no usual one.")
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
    own = ["--algo", algorithm, "--seed", seed, "--out", args.out]
    own += ["--rewards", mode] if mode else []
    own += ["--name", f"{algo.replace(':', '-')}-s{seed}"]
    return [preset, *ALL, *(MINI if preset == "mini" else []), *row, *given, *own]


def finished(argv: list[str]) -> bool:
    """Whether the cell has been run. Errors: UserError if its folder holds a run of other settings."""
    cfg = tinyr1.parse(argv)[0]
    folder = Path(cfg.out) / cfg.name
    if not (folder / "config.json").exists():
        return False
    saved = json.loads((folder / "config.json").read_text())
    changed = differing(saved["config"], asdict(cfg), FREE)
    changed += [DIGESTS[name] for name in changed_digests(saved.get("environment", {}), provenance(cfg))]
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings ({', '.join(changed)}): give another --out, or remove "
            "it."
        )
    return (folder / "summary.json").exists()


def run_cell(command: list) -> int:
    """Its exit code. Ctrl-C reaches the cell through us alone, once, so that it saves before it stops."""
    process = subprocess.Popen(command, start_new_session=True)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "tinyr1.py compare_algos",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--algos", default=",".join(tinyr1.ALGORITHMS), help="cells, separated by commas")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--out", default="runs/algos", help="where the cells' run folders are")
    parser.add_argument("--report", help="path of figure and table, without suffix (default: OUT/algorithms)")
    args, options = parser.parse_known_args(argv)
    report = Path(args.report or Path(args.out) / "algorithms")
    cells = [(algo, seed) for seed in args.seeds.split(",") for algo in args.algos.split(",")]
    commands = {cell: cell_command(args, options, *cell) for cell in cells}
    # all cells are checked before any runs
    check_gpu(*tinyr1.parse(next(iter(commands.values()))))
    done = {cell for cell, command in commands.items() if finished(command)}
    failed: dict[str, int] = {}
    for i, (cell, command) in enumerate(commands.items()):
        print(f"[{i + 1}/{len(cells)}] {cell[0]}, seed {cell[1]}{': finished' * (cell in done)}", flush=True)
        if cell in done:
            continue
        code = run_cell([sys.executable, HERE / "tinyr1.py", "train", *command])
        if code == 130:
            print("stopped; the same command resumes")
            return 130
        if code:
            failed[cell[0]] = failed.get(cell[0], 0) + 1
        else:
            done.add(cell)
    paths: dict[str, list[Path]] = {algo: [] for algo in args.algos.split(",")}
    for algo, seed in cells:
        if (algo, seed) in done:
            paths[algo].append(Path(args.out) / commands[algo, seed][-1])
    typed = shlex.join(["python", "tinyr1.py", "compare_algos", *argv])
    try:
        algorithms.write(paths, report, typed, failed)
    except NotARun as error:
        raise UserError(f"Nothing to compare: {error}") from error
    return 1 if failed else 0
