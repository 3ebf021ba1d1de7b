"""What training starts to draw its run, in a process of its own that does without torch.

    python -m plots report RUN START      # RUN/report.html
    python -m plots figures RUN START     # RUN/plots/

Both run in the repository's folder, which Python then imports from, and go back to START, where training was
started: relative paths in a run's settings, such as its model's, are meant from there. People take
`python tinyr1.py plot`.
"""

import os
import sys
from pathlib import Path

from plots import aha, curves, dip, report

FIGURES = {
    "the curves": lambda folder: curves.draw([folder]),
    "the aha panels": aha.write,
    "the dip": lambda folder: dip.write(folder) if dip.concerns(folder) else "",
}
REPORT = {"the report": lambda folder: f"Report: {report.write(folder)}"}


def draw_all(folder: Path, writers: dict) -> int:
    """Draw each, whatever becomes of the others; 1 if one failed."""
    failed = 0
    for name, write in writers.items():
        try:
            if said := write(folder):
                print(said)
        except Exception as error:
            failed = 1
            print(f"{name}: not drawn ({type(error).__name__}: {error})", file=sys.stderr)
    return failed


def main(what: str, run: str, start: str) -> int:
    os.chdir(start)
    return draw_all(Path(run), REPORT if what == "report" else FIGURES)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
