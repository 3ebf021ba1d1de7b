"""Training runs, and other commands, that a command makes; finished ones are not run again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

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


class Job(NamedTuple):
    """What is not there yet: a name, and the arguments of tinyr1.py."""

    name: str
    argv: list[str]


def make_all(jobs: list[Job], at_once: int, out: Path) -> list[str]:
    """Run these commands of tinyr1.py, at most `at_once` of them at a time, which share the cores. Returns
    the names of those that failed. Errors: UserError for less than one at a time.

    Each writes what it says to OUT/logs/NAME.log. Ctrl-C is passed on to all: they save before they stop.
    """
    if at_once < 1:
        raise UserError(f"--jobs {at_once}: at least one must run at a time.")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    running: dict[str, Any] = {}
    waiting, failed, began = list(jobs), [], time.time()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                # those that will run beside it, and itself
                sharing = min(at_once, len(running) + 1 + len(waiting))
                threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // sharing))}
                surroundings = os.environ | (threads if sharing > 1 else {})
                with open(out / "logs" / f"{job.name.replace(' ', '-')}.log", "ab") as log:
                    running[job.name] = start(job.argv, stdout=log, stderr=log, env=surroundings)
            time.sleep(0.5)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    failed += [name] * (process.returncode != 0)
                    told = "failed" if process.returncode else "finished"
                    print(
                        f"{(time.time() - began) / 60:6.1f} min  {name}: {told}; {len(waiting)} wait",
                        flush=True,
                    )
    except KeyboardInterrupt:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()
        raise
    return failed
