"""Draw runs, finished or in progress: figures, tables and the report, from the files of their run folders.

    python tinyr1.py plot runs/mini                            everything about one run, as training draws it
    python tinyr1.py plot curves runs/a runs/b --out ab.png    several runs in one figure
    python tinyr1.py plot curves runs/mini --live 20           again every 20 seconds, while it trains
    python tinyr1.py plot compare runs/a runs/b runs/c         seeds grouped, and differences tested
    python tinyr1.py plot summary runs/mini                    the closing table again

`python tinyr1.py plot NAME --help` explains each. Nothing here loads a model.
"""

import argparse
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from plots import aha, algorithms, compare, crossed, curves, dip, report, summary
from plots.__main__ import FIGURES, REPORT, draw_all
from plots.runs import NotARun, load_run
from runtime.config import suggest
from runtime.runfolder import UserError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}. `{self.prog} --help` explains it.")


# ---------------------------------------------------------------- what each name draws


def everything(args: argparse.Namespace) -> int:
    """Everything about one run: curves, aha panels, dip and report, as training draws them at its end.

        python tinyr1.py plot all runs/mini       # runs/mini/plots/*.{png,pdf} and runs/mini/report.html
        python tinyr1.py plot runs/mini           # the same

    What fails is named; the others are drawn.
    """
    load_run(args.run)
    return draw_all(args.run, FIGURES | REPORT)


def draw_curves(args: argparse.Namespace) -> None:
    print(curves.draw(args.runs, args.out))
    try:
        while args.live:
            time.sleep(max(args.live, 1))
            print(time.strftime("%H:%M:%S"), curves.draw(args.runs, args.out), flush=True)
    # this is how it ends
    except KeyboardInterrupt:
        pass


def draw_aha(args: argparse.Namespace) -> None:
    if args.run.is_file():
        print(aha.table_of(args.run, args.field))
    else:
        print(aha.write(args.run, args.out, args.base, args.trained))


def draw_compare(args: argparse.Namespace) -> None:
    print(compare.write(args.runs, args.out))


def draw_dip(args: argparse.Namespace) -> None:
    print(dip.write(args.run, args.out))


def draw_crossed(args: argparse.Namespace) -> None:
    folders = {name: Path(folder) for name, folder in split(args.models, "NAME=FOLDER").items()}
    print(crossed.write(folders, args.out))


def draw_algorithms(args: argparse.Namespace) -> None:
    groups = split(args.groups, "NAME=RUN,RUN")
    algorithms.write({name: [*map(Path, runs.split(","))] for name, runs in groups.items()}, args.out)


def write_report(args: argparse.Namespace) -> None:
    print(report.write(args.run, args.out, args.base, args.trained))


def show_summary(args: argparse.Namespace) -> None:
    """The closing table of a finished run, and one problem answered by the base and by the trained model.

        python tinyr1.py plot summary runs/mini

    The run must have finished.
    """
    if not (args.run / "summary.json").is_file():
        raise NotARun(f"{args.run} has no summary.json: it is no run folder, or the run has not finished.")
    summary.show(args.run)


def split(words: list[str], form: str) -> dict[str, str]:
    """{name: value} of words such as NAME=VALUE. Errors: UserError."""
    for word in words:
        if "=" not in word:
            raise UserError(f"{form} is expected, not {word!r}.")
    return dict(word.split("=", 1) for word in words)


# ---------------------------------------------------------------- the table of them


class Kind(NamedTuple):
    # its exit code is 0 unless it returns another one
    draw: Callable[[argparse.Namespace], int | None]
    # its first line is the summary in the list
    explanation: str | None
    arguments: dict[str, Any]


RUN: dict[str, Any] = {"run": dict(type=Path, metavar="RUN", help="run folder")}
RUNS: dict[str, Any] = {"runs": dict(nargs="+", type=Path, metavar="RUN", help="run folder")}
SIDES: dict[str, Any] = {
    "--base": dict(type=Path, metavar="FOLDER", help="evaluation of the base model, for pass@k"),
    "--trained": dict(type=Path, metavar="FOLDER", help="evaluation of the trained model, for pass@k"),
}


def out(help: str, **more: Any) -> dict[str, Any]:
    return {"--out": dict(type=Path, help=help, **more)}


KINDS = {
    "all": Kind(everything, everything.__doc__, RUN),
    "curves": Kind(draw_curves, curves.__doc__, RUNS | {
        "--live": dict(type=float, metavar="SECONDS", help="draw again this often, until Ctrl-C"),
    } | out("image file or folder (default: plots/ of the first run)")),
    "aha": Kind(draw_aha, aha.__doc__, {
        "run": dict(type=Path, metavar="RUN", help="run folder, or a .jsonl file of samples"),
        "--field": dict(default="completion", help="key of the text in such a file (default: %(default)s)"),
    } | SIDES | out("folder of the figure (default: plots/ of the run)")),
    "compare": Kind(draw_compare, compare.__doc__, RUNS | out(
        "folder to write into (default: plots/ of the first run)")),
    "dip": Kind(draw_dip, dip.__doc__, RUN | out("folder of the figure (default: plots/ of the run)")),
    "crossed": Kind(draw_crossed, crossed.__doc__, {
        "models": dict(nargs="+", metavar="NAME=FOLDER", help="a model's name and its evaluation"),
    } | out("image file (default: crossed.png in the first folder)")),
    "algorithms": Kind(draw_algorithms, algorithms.__doc__, {
        "groups": dict(nargs="+", metavar="NAME=RUN,RUN", help="a group's name and its run folders"),
    } | out("path without suffix", required=True, metavar="REPORT")),
    "report": Kind(write_report, report.__doc__, RUN | SIDES | out(
        "file to write (default: report.html in the run folder)")),
    "summary": Kind(show_summary, show_summary.__doc__, RUN),
}  # fmt: skip


def make_parser() -> Parser:
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser("tinyr1.py plot", description=__doc__, formatter_class=style)
    kinds = parser.add_subparsers(title="what to draw", metavar="NAME", required=True)
    for name, kind in KINDS.items():
        text = inspect.cleandoc(kind.explanation or "")
        about = text.partition("\n")[0].rstrip(".")
        own = kinds.add_parser(name, help=about, description=text, formatter_class=style)
        own.set_defaults(draw=kind.draw)
        for argument, options in kind.arguments.items():
            own.add_argument(argument, **options)
    return parser


def main(argv: list[str]) -> int:
    if argv and argv[0] not in KINDS and not argv[0].startswith("-"):
        if not Path(argv[0]).exists():
            raise UserError(
                f"{argv[0]!r} is neither a run folder nor something to draw.{suggest(argv[0], KINDS)} There "
                f"are {', '.join(KINDS)}: `tinyr1.py plot NAME RUN`, or `tinyr1.py plot RUN` for all."
            )
        argv = ["all", *argv]
    args = make_parser().parse_args(argv)
    try:
        return args.draw(args) or 0
    except (NotARun, OSError) as error:
        raise UserError(f"Nothing drawn: {error}") from error
