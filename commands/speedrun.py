"""How many seconds of training until the miniature solves 80 % of the held-out problems, on this machine?

    python tinyr1.py speedrun                          mini as it is: three seeds, and the median
    python tinyr1.py speedrun --group 8 --lr 6e-4      with options of training: can you beat it?
    python tinyr1.py speedrun --model runs/mybase      a base of your own, with as few searches in its corpus

The clock counts sampling, verdicts and updates, not evaluations. Every second step all held-out problems are
evaluated, one sample each, and the run stops at the first evaluation with 80 %. The rules and the records:
docs/speedrun.md. The same command resumes.
"""

import json
import shlex
import statistics
import time
from pathlib import Path

import tinyr1
from commands import make_parser
from commands._cells import finished, folder_of, run_cell
from minibase.make import Corpus
from plots.runs import History, load_run, number
from runtime.digests import model_folder
from runtime.runfolder import UserError, environment

TARGET = 0.8
# of every run; the rules forbid to change them
FIXED = (
    f"--stop_accuracy {TARGET} --probe_every 2 --probe_problems 500 --eval_samples 1 --save_every 1000"
).split()
# what a base may not have more of than the shipped one's corpus
SHARES = ("search_share", "code_share")


def command_of(options: list[str], seed: str, out: str) -> list[str]:
    """The arguments of `train` for a seed. Errors: UserError for options against the rules."""
    argv = ["mini", *options, *FIXED, "--seed", seed, "--out", out, "--name", f"seed_{seed}"]
    ours, plain = tinyr1.parse(argv)[0], tinyr1.parse(["mini", *FIXED])[0]
    for name in ("task", "task_args", "template", "eval_problems", "temperature", "top_p"):
        if getattr(ours, name) != getattr(plain, name):
            raise UserError(f"--{name} is not for a speedrun to change: docs/speedrun.md has the rules.")
    check_base(ours.model)
    return argv


def check_base(model: str) -> None:
    """Errors: UserError unless the base's record says that its corpus searches as seldom as the default."""
    record = Path(model_folder(model)) / "record.json"
    if not record.exists():
        raise UserError(
            f"--model {model} has no record.json, which says what it has read: make the base with make-base."
        )
    corpus = json.loads(record.read_text())["corpus"]
    more = [name for name in SHARES if corpus[name] > getattr(Corpus, name)]
    if more or corpus["give_up"] < Corpus.give_up:
        raise UserError(
            f"--model {model} has read more searches than the shipped base ({', '.join(more) or 'give_up'}): "
            "docs/speedrun.md has the rules."
        )


def reached(run: History) -> tuple[int, float, float] | None:
    """(steps, seconds of training, accuracy) at the first evaluation with TARGET; None without one."""
    seconds = 0.0
    for row in run.rows:
        seconds += number(row.get("time/step", 0.0))
        accuracy = number(row.get("probe/accuracy"))
        if accuracy >= TARGET:
            return row["step"], seconds, accuracy
    return None


def main(argv: list[str]) -> int:
    parser = make_parser("speedrun", "[--option value ...]", __doc__)
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--out", default="runs/speedrun", help="folder of the runs; one per attempt")
    args, options = parser.parse_known_args(argv)
    commands = {seed: command_of(options, seed, args.out) for seed in args.seeds.split(",")}
    pending = [seed for seed, command in commands.items() if not finished(command)]
    for seed in pending:
        print(f"seed {seed}", flush=True)
        if code := run_cell(["train", *commands[seed]]):
            return code
    results = {seed: reached(load_run(folder_of(command))) for seed, command in commands.items()}
    print(report(results, options))
    return 0


def report(results: dict[str, tuple[int, float, float] | None], options: list[str]) -> str:
    """The result of each seed, the median, and the row for docs/speedrun.md."""
    lines = []
    for seed, result in results.items():
        told = f"not reached {TARGET:.0%}"
        if result:
            told = (
                f"{result[1]:.1f} s of training, {result[0]} steps, {result[2]:.1%} of the held-out problems"
            )
        lines.append(f"seed {seed}: {told}")
    if not all(results.values()):
        return "\n".join([*lines, "No result: every seed has to reach it."])
    seconds = [result[1] for result in results.values() if result]
    made = environment()
    typed = shlex.join(["python", "tinyr1.py", "speedrun", *options])
    machine = f"{made['cpus']} cores, {made['processor']}"
    row = (
        f"| {statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f}) | `{typed}` | "
        f"{(made['commit'] or '?')[:10]} | {machine}, torch {made['torch']} | "
        f"{time.strftime('%Y-%m-%d')} |"
    )
    return "\n".join([*lines, f"median: {statistics.median(seconds):.1f} s to {TARGET:.0%}", "", row])
