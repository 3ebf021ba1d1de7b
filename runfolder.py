"""The run folder: what a run writes, atomically, and how it is resumed. Nothing here knows about
reinforcement learning.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from tasks import read_jsonl

HERE = Path(__file__).resolve().parent


class UserError(Exception):
    """Something the person at the terminal can mend; the message is one paragraph that says how."""


def environment() -> dict:
    """Versions, processor and commit that a result depends on."""

    def git(*command):
        try:
            result = subprocess.run(["git", "-C", str(HERE), *command], capture_output=True, text=True)
        except OSError:  # no git
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": git("rev-parse", "--verify", "-q", "HEAD"),
        "changed": git("status", "--porcelain", "--untracked-files=no", "--", "*.py"),
        "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu,
    }  # fmt: skip


def write_atomically(path: Path, write) -> None:
    """`write(file)` beside `path`, flushed to the disk, then renamed onto it: at any moment the old or the
    new one is whole.
    """
    aside = path.with_name(path.name + ".partial")
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        aside.unlink(missing_ok=True)
        raise UserError(
            f"Could not write {path}: {error}. What was there before is untouched: make room and run the "
            "same command."
        ) from error
    os.replace(aside, path)


def write_json(path: Path, value) -> None:
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1).encode() + b"\n"))


def differing(saved: dict, now: dict, free) -> list[str]:
    """The settings in which a run that is to go on is not the one that was saved, but for the `free` ones."""
    return [name for name, value in now.items() if name not in free and saved.get(name) != value]


LOW_PRIORITY = 19  # of what refreshes the report while training goes on: it takes what training leaves
LOGS = ("metrics.jsonl", "samples.jsonl", "eval_samples.jsonl")


class Run:
    """runs/<name>/: config.json, metrics.jsonl (a row a step), samples.jsonl (some of a step's and of an
    evaluation's), eval_samples.jsonl (all of every evaluation's), checkpoint/, final/, summary.json, plots/,
    report.html.
    """

    def __init__(self, cfg):
        """Checks only; `begin` writes. Errors: UserError if the folder is taken or cannot be written."""
        self.path = Path(cfg.out) / cfg.name
        self.checkpoint = self.path / "checkpoint" / "state.pt"
        self.pictures = Pictures(self.path)
        try:
            taken = self.path.exists() and any(self.path.iterdir())
            ours = taken and (self.path / "metrics.jsonl").exists() or (self.path / "checkpoint").is_dir()
            if taken and not ours:
                raise UserError(
                    f"{self.path} is a folder with other things in it. Give another --name or --out."
                )
            self.fresh = cfg.overwrite or not (self.path / "config.json").exists()
            new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".writable").touch()
            (self.path / ".writable").unlink()
            if new:
                self.path.rmdir()  # a start that is refused later leaves nothing behind
        except OSError as error:
            raise UserError(
                f"Cannot write the run folder {self.path}: {error}. Choose another place with --out FOLDER."
            ) from error
        if not cfg.overwrite and (self.path / "summary.json").exists():
            raise UserError(
                f"{self.path} holds a finished run. Give --name ANOTHER for a new one, or --overwrite to "
                f"delete it. To see it again: python plots/summary.py {self.path}"
            )
        if not self.fresh:
            self.check_same(cfg)

    def begin(self, cfg) -> dict | None:
        """Start or go on, once all else is known to be good; returns the checkpoint, None for a new run."""
        if self.fresh and (self.path / "config.json").exists():
            shutil.rmtree(self.path)
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        content = {"config": asdict(cfg), "environment": environment(), "argv": sys.argv[1:]}
        write_json(self.path / "config.json", content)
        return self.load()

    def check_same(self, cfg) -> None:
        """A resumed run must be the same run; `auto` knobs were settled when it began."""
        try:
            saved = json.loads((self.path / "config.json").read_text())["config"]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.path / 'config.json'} is corrupt ({error}): start again with --overwrite."
            ) from error
        for name in ("device", "precision"):
            if getattr(cfg, name) == "auto":
                setattr(cfg, name, saved[name])
        changed = differing(saved, asdict(cfg), free=("out", "overwrite", "name"))
        changed = [f"--{name} was {saved.get(name)}, now {getattr(cfg, name)}" for name in changed]
        if changed:
            raise UserError(
                f"{self.path} holds an unfinished run with other settings ({'; '.join(changed)}). Go on with "
                "the old settings, or give --name ANOTHER for a new run, or --overwrite to delete it."
            )

    def log(self, file: str, rows: list[dict]) -> None:
        try:
            with open(self.path / file, "a") as f:
                f.write("".join(json.dumps(row, default=str) + "\n" for row in rows))
                f.flush()
                os.fsync(f.fileno())  # a checkpoint relies on what stands here
        except OSError as error:
            raise UserError(
                f"Could not write {self.path / file}: {error}. Make room and run the same command to resume."
            ) from error

    def export(self, model, tokenizer) -> None:
        """final/: the model in Hugging Face format. Errors: UserError, the checkpoint stays."""
        try:
            model.save_pretrained(self.path / "final")
            tokenizer.save_pretrained(self.path / "final")
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"Could not write {self.path / 'final'}: {error}. The checkpoint is whole: make room and run "
                "the same command."
            ) from error

    def rows(self, file: str) -> list[dict]:
        path = self.path / file
        return read_jsonl(path) if path.exists() else []

    def save(self, state: dict) -> None:
        """Replace the checkpoint by `state` and the present sizes of the logs."""
        state = state | {"sizes": self.sizes()}
        write_atomically(self.checkpoint, lambda file: torch.save(state, file))

    def load(self) -> dict | None:
        """The last checkpoint, after cutting the logs back to it; None for a new run. Errors: UserError if
        it is corrupt.
        """
        state = None
        if self.checkpoint.exists():
            try:
                state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
                state["model"], state["optimizer"], state["step"], state["sizes"]
                if any((self.path / f).stat().st_size < size for f, size in state["sizes"].items() if size):
                    raise ValueError("the logs are shorter than when it was written")
            except Exception as error:
                raise UserError(
                    f"The checkpoint {self.checkpoint} cannot be read ({type(error).__name__}): it is "
                    "truncated or not of this version. Nothing was changed. Restore it from a copy, or start "
                    "again with --overwrite."
                ) from error
        for file in LOGS:
            if (self.path / file).exists():
                os.truncate(self.path / file, state["sizes"].get(file, 0) if state else 0)
        return state

    def sizes(self) -> dict:
        """Bytes of the logs: a resumed run cuts them back to the checkpoint's, also through a half-written
        line.
        """
        return {f: (self.path / f).stat().st_size if (self.path / f).exists() else 0 for f in LOGS}


# ---------------------------------------------------------------- what can be seen of a run


class Pictures:
    """What plots/ makes of a run folder, in processes of their own: training goes on beside them, and after
    they have failed, which is mentioned once.
    """

    def __init__(self, folder: Path):
        self.folder, self.process, self.mentioned = folder, None, False

    def refresh(self) -> None:
        """Begin to write report.html anew, at low priority, unless the last one is still being written."""
        if self.process and self.process.poll() is None:
            return
        if self.process and self.process.returncode:
            self.mention(self.process.stderr.read().decode(errors="replace"))
        command = [sys.executable, HERE / "plots" / "report.py", self.folder]
        try:  # in a session of its own: Ctrl-C is for the training
            self.process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )
            os.setpriority(os.PRIO_PROCESS, self.process.pid, LOW_PRIORITY)
        except ProcessLookupError:  # it has ended already
            pass
        except OSError as error:
            self.mention(str(error))

    def mention(self, error: str) -> None:
        if not self.mentioned:
            last = error.strip().rpartition("\n")[2]  # of a traceback
            tqdm.write(f"report.html could not be refreshed ({last}); training goes on")
        self.mentioned = True

    def finish(self) -> str:
        """Draw all figures, write the report, and wait for them; what they have to say for the terminal."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # it takes its half-written file away
            self.process.wait()
        try:
            done = subprocess.run(
                [sys.executable, HERE / "plots", self.folder], capture_output=True, text=True
            )
        except OSError as error:
            return f"Nothing drawn: {error}"
        return (done.stdout + done.stderr).strip()


# ---------------------------------------------------------------- a run's time and its end


class Interrupt:
    """The first Ctrl-C lets the step finish and saves; the second one stops at once."""

    def __enter__(self):
        self.asked = False
        self.before = [(s, signal.signal(s, self.ask)) for s in (signal.SIGINT, signal.SIGTERM)]
        return self

    def ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write(
            "\nstopping after this step, then saving (Ctrl-C again stops at once; the last checkpoint stays)"
        )

    def __exit__(self, *_):
        for s, handler in self.before:
            signal.signal(s, handler)


class Clock(dict):
    """Seconds by phase: `with clock("sample"): ...`."""

    @contextlib.contextmanager
    def __call__(self, phase: str):
        begin = time.perf_counter()
        yield
        self[phase] = self.get(phase, 0.0) + time.perf_counter() - begin
