"""Training runs that a command makes one after the other; finished ones are not run again."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tinyr1
from runtime.runfolder import DIGESTS, HERE, UserError, changed_digests, differing, provenance

# Options in which a finished cell may differ.
FREE = {"out", "overwrite", "name", "device", "precision"}


def folder_of(argv: list[str]) -> Path:
    """Where `train` with these arguments leaves its run."""
    cfg = tinyr1.parse(argv)[0]
    return Path(cfg.out) / cfg.name


def finished(argv: list[str]) -> bool:
    """Whether the cell has been run. Errors: UserError if its folder has a run with other settings."""
    cfg, folder = tinyr1.parse(argv)[0], folder_of(argv)
    if not (folder / "config.json").exists():
        return False
    saved = json.loads((folder / "config.json").read_text())
    changed = differing(saved["config"], asdict(cfg), FREE)
    changed += [DIGESTS[name] for name in changed_digests(saved.get("environment", {}), provenance(cfg))]
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings ({', '.join(changed)}): give another --out, or delete "
            "that folder."
        )
    return (folder / "summary.json").exists()


def start(argv: list[str], **options: Any) -> subprocess.Popen:
    """A command of tinyr1.py in a session of its own, out of Ctrl-C's reach; options of Popen."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "tinyr1.py"), *argv], start_new_session=True, **options
    )


def run_cell(argv: list[str]) -> int:
    """The exit code of a command of tinyr1.py. Ctrl-C is passed on to it: it saves before it stops."""
    process = start(argv)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
