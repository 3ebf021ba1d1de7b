"""All that is to be seen of a run: its figures in RUN/plots/, and RUN/report.html.

python plots RUN
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the folder runs as a script, too
from plots import aha, curves, dip, report

WRITERS = {
    "the curves": lambda folder: curves.draw([folder]),
    "the aha panels": aha.write,
    "the dip": lambda folder: dip.write(folder) if dip.concerns(folder) else "",
    "the report": lambda folder: f"Report: {report.write(folder)}",
}


def main(folder: Path) -> int:
    """Draw each, whatever becomes of the others; 1 if one failed."""
    failed = 0
    for name, write in WRITERS.items():
        try:
            if said := write(folder):
                print(said)
        except Exception as error:
            failed = 1
            print(f"{name}: not drawn ({type(error).__name__}: {error})", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) if len(sys.argv) == 2 else __doc__)
