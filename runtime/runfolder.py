"""The run folder: what a run writes, atomically, and how it is resumed. Nothing here knows about
reinforcement learning.
"""

import contextlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import torch
import transformers
from tqdm import tqdm

from runtime.digests import HERE, digest, model_files, model_folder, task_files
from tasks import read_jsonl

try:
    import fcntl
except ImportError:
    # Windows
    fcntl = None  # type: ignore[assignment]


class UserError(Exception):
    """Something that the user can fix; the message is one paragraph that says how."""


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


# of what trains: a task's files have a digest of their own
TRAINER = ("*.py", ":!tests", ":!plots", ":!commands", ":!tasks")


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment() -> dict[str, Any]:
    """Versions, processor and commit that a result depends on; a digest of what the trainer has that was not
    committed ("": nothing; None: not known).
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(HERE), *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        # no git
        except OSError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    changes = git("diff", "--no-ext-diff", "--no-color", "HEAD", "--", *TRAINER)
    if changes:
        changes = blake2b(changes.encode(), digest_size=6).hexdigest()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": git("rev-parse", "--verify", "-q", "HEAD"),
        "changed": git("status", "--porcelain", "--untracked-files=no", "--", "*.py"),
        "changes_digest": changes,
        "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu,
        "processor": f"{processor()} ({torch.backends.cpu.get_cpu_capability()})",
    }  # fmt: skip


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`write(file)` beside `path`, flushed to the disk, then renamed onto it: at any moment the old or the
    new one is whole.
    """
    aside = path.with_name(path.name + ".partial")
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    # torch.save turns a full disk into a RuntimeError
    except (OSError, RuntimeError) as error:
        aside.unlink(missing_ok=True)
        raise UserError(
            f"Could not write {path}: {one_line(error)}. What was there before is untouched: make room and "
            "run the same command."
        ) from error
    os.replace(aside, path)


def to_json(value: Any, **options: Any) -> str:
    """JSON of a value; NaN and infinities, which JSON does not have, become null."""
    try:
        return json.dumps(value, default=str, allow_nan=False, **options)
    except ValueError:
        return json.dumps(without_nan(value), default=str, allow_nan=False, **options)


def without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return value


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, lambda file: file.write(to_json(value, indent=1).encode() + b"\n"))


def differing(saved: dict, now: dict, free: Collection[str]) -> list[str]:
    """The settings, except the `free` ones, in which a run to be resumed differs from the saved one."""
    return [name for name, value in now.items() if name not in free and saved.get(name) != value]


# key of `environment` -> what has changed where it differs
DIGESTS = {
    "model_digest": "the base model",
    "task_digest": "the task (its code, or a file that its options name)",
    "changes_digest": "the uncommitted changes of the trainer",
}


def provenance(cfg: Any) -> dict[str, Any]:
    """environment(), with digests of the base model and of the task of a run; None where unknown."""
    found = {"model_digest": digest(model_files(cfg.model))}
    return environment() | found | {"task_digest": digest(task_files(cfg.task, cfg.task_args))}


def changed_digests(saved: dict, now: dict) -> list[str]:
    """The keys of DIGESTS that are known of both environments and differ."""
    return [name for name in DIGESTS if None not in (old := saved.get(name), now[name]) and old != now[name]]


# ---------------------------------------------------------------- whose folder it is

LOCK = ".lock"
# folder -> its open lock file
locks: dict[Path, TextIO] = {}


def lock(folder: Path) -> None:
    """Make this process the only one that writes into the folder, until release_locks() or its end, whatever
    ends it. Errors: UserError if another one does.
    """
    folder = folder.resolve()
    if folder in locks:
        return
    file = open(folder / LOCK, "a+")
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise UserError(
            f"{folder} is in use by another process ({owner or 'id not known'}). Wait for it or stop it, or "
            "give --name ANOTHER."
        ) from error
    except OSError as error:
        print(f"{folder} cannot be locked ({error}): let no second process write into it.")
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    locks[folder] = file


def release_locks() -> None:
    while locks:
        locks.popitem()[1].close()


# ---------------------------------------------------------------- a model as a folder


def write_model(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    """Both in Hugging Face format, written beside `folder` and renamed onto it: what was there is replaced
    by a whole model, or stays.
    """
    aside, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for rest in (aside, old):
        shutil.rmtree(rest, ignore_errors=True)
    try:
        model.save_pretrained(aside, **options)
        tokenizer.save_pretrained(aside)
        for path in aside.rglob("*"):
            if path.is_file():
                with open(path, "r+b") as file:
                    os.fsync(file.fileno())
    except BaseException:
        # on a full disk it takes the room
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def mend_generation_config(model: Any) -> None:
    """transformers refuses to save a generation configuration that contradicts itself, such as a temperature
    beside do_sample=False. Nothing here reads more of it than the special tokens: keep those alone.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError as error:
        kept = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = type(config)(**{name: getattr(config, name) for name in kept})
        print(
            f"The model's generation_config.json contradicts itself ({one_line(error)[:200]} ...): what is "
            "trained from it keeps only the special tokens of it."
        )


def check_export(model: Any, tokenizer: Any) -> None:
    """Try the export before the first step: all of it but the weights. Errors: UserError."""
    mend_generation_config(model)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_model(model, tokenizer, Path(folder) / "final", state_dict={})
    # whatever a configuration or a tokenizer makes transformers raise
    except Exception as error:
        raise UserError(
            f"This model could not be saved after training ({type(error).__name__}: {one_line(error)}). Fix "
            "its configuration or its tokenizer, or choose another model."
        ) from error


# ---------------------------------------------------------------- the run folder

# of what refreshes the report during training: it takes what training leaves
LOW_PRIORITY = 19
# from one refresh of the report to the next: each takes seconds of a core from training
REFRESH_SECONDS = 20
# Options that do not change what a run computes.
STORAGE = ("name", "out", "overwrite", "save_every", "keep_checkpoints")
LOGS = ("metrics.jsonl", "samples.jsonl", "eval_samples.jsonl")


def find_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run folder, the newest one last."""
    # checkpoint/state.pt is that of a run of an earlier version
    return sorted((run / "checkpoint").glob("*.pt"), key=lambda path: (len(path.name), path.name))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, mapped from the file. Errors: whatever torch raises, KeyError."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state["model"], state["step"]
    return state


class Run:
    """runs/<name>/: config.json, metrics.jsonl (a row per step and per evaluation), samples.jsonl (some
    of each), eval_samples.jsonl (all of every evaluation), checkpoint/ (the last ones), best/ (the model of
    the best small evaluation), final/, summary.json, plots/, report.html.
    """

    def __init__(self, cfg: Any):
        """Checks only; `begin` writes. Errors: UserError if the folder is taken, in use, or cannot be
        written.
        """
        self.path = Path(cfg.out) / cfg.name
        self.checkpoints = self.path / "checkpoint"
        self.keep_checkpoints = cfg.keep_checkpoints
        self.pictures = Pictures(self.path)
        # config.json of a run that is resumed
        self.saved: dict[str, Any] = {}
        self.new = not self.path.exists()
        try:
            taken = not self.new and any(path.name != LOCK for path in self.path.iterdir())
            ours = taken and (self.path / "metrics.jsonl").exists() or self.checkpoints.is_dir()
            if taken and not ours:
                raise UserError(
                    f"{self.path} is a folder with other things in it. Give another --name or --out."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".writable").touch()
            (self.path / ".writable").unlink()
            if self.new:
                # a start that is refused later leaves nothing
                self.path.rmdir()
            else:
                lock(self.path)
        except OSError as error:
            raise UserError(
                f"Cannot write the run folder {self.path}: {error}. Choose another place with --out FOLDER."
            ) from error
        if not cfg.overwrite and (self.path / "summary.json").exists():
            raise UserError(
                f"{self.path} holds a finished run. Give --name ANOTHER for a new one, or --overwrite to "
                f"delete it. To see it again: python tinyr1.py plot summary {self.path}"
            )
        self.fresh = cfg.overwrite or not (self.path / "config.json").exists()
        if cfg.overwrite and not self.new:
            self.check_not_needed(cfg)
        if not self.fresh:
            self.check_same(cfg)

    def begin(self, cfg: Any, about: dict[str, Any]) -> dict[str, Any] | None:
        """Start or resume, once all else is known to be good; returns the checkpoint, None for a new run.
        `about` goes into config.json. Errors: UserError.
        """
        now, saved = provenance(cfg), self.saved.get("environment", {})
        if changed := changed_digests(saved, now):
            what = "; ".join(f"{DIGESTS[name]} was {saved[name]}, is {now[name]}" for name in changed)
            raise UserError(
                f"{self.path} holds an unfinished run, and since it began there has been a change: {what}. "
                "Change it back, or give --name ANOTHER for a new run, or --overwrite to delete this one. To "
                f"resume with the change, write null for {' and '.join(changed)} in "
                f"{self.path / 'config.json'}."
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock(self.path)
        if self.new and (self.path / "config.json").exists():
            raise UserError(f"Another process has begun a run in {self.path}. Give --name ANOTHER.")
        if cfg.overwrite:
            self.clear()
        content = {"config": asdict(cfg), "environment": now, "argv": sys.argv[1:]} | about
        if saved and saved != now:
            content["earlier_environments"] = [*self.saved.get("earlier_environments", []), saved]
        write_json(self.path / "config.json", content)
        return self.load()

    def clear(self) -> None:
        """Delete what the folder holds, except the lock."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        self.checkpoints.mkdir()

    def check_not_needed(self, cfg: Any) -> None:
        """--overwrite must not delete the model or the task that the new run is made of."""
        files = [model_folder(cfg.model), *model_files(cfg.model), *task_files(cfg.task, cfg.task_args)]
        folder = self.path.resolve()
        needed = [path for path in files if path.resolve().is_relative_to(folder)]
        if needed:
            raise UserError(
                f"--overwrite would delete {needed[0]}, which the new run needs. Give --name ANOTHER."
            )

    def check_same(self, cfg: Any) -> None:
        """A resumed run must be the same run; what `auto` means was settled when it began."""
        try:
            self.saved = json.loads((self.path / "config.json").read_text())
            saved = self.saved["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path / 'config.json'} is corrupt ({error}): start again with --overwrite."
            ) from error
        now = asdict(cfg)
        for name in ("device", "precision"):
            if now[name] == "auto":
                now[name] = saved[name]
        # an option that is newer than the run has its default in it
        saved = asdict(type(cfg)()) | saved
        changed = [f"--{x} was {saved[x]}, now {now[x]}" for x in differing(saved, now, STORAGE)]
        if changed:
            raise UserError(
                f"{self.path} holds an unfinished run with other settings ({'; '.join(changed)}). Resume it "
                "with the old settings, or give --name ANOTHER for a new run, or --overwrite to delete it."
            )

    def log(self, file: str, rows: list[dict]) -> None:
        try:
            with open(self.path / file, "a") as f:
                f.write("".join(to_json(row) + "\n" for row in rows))
                f.flush()
                # a checkpoint relies on what is written here
                os.fsync(f.fileno())
        except OSError as error:
            raise UserError(
                f"Could not write {self.path / file}: {error}. Make room and run the same command to resume."
            ) from error

    def export(self, model: Any, tokenizer: Any, name: str = "final") -> None:
        """final/ or best/: the model in Hugging Face format. Errors: UserError, the checkpoint stays."""
        try:
            write_model(model, tokenizer, self.path / name)
        # OSError of a full disk, and whatever transformers raises
        except Exception as error:
            raise UserError(
                f"Could not write {self.path / name}: {type(error).__name__}: {one_line(error)}. The last "
                "checkpoint is whole, and eval and play take it. When the cause is fixed, the same command "
                "resumes from it."
            ) from error

    def rows(self, file: str) -> list[dict]:
        path = self.path / file
        return read_jsonl(path) if path.exists() else []

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint of state["step"] with the sizes of the logs, and delete old ones."""
        state = state | {"sizes": self.sizes()}
        path = self.checkpoints / f"step_{state['step']:06d}.pt"
        write_atomically(path, lambda file: torch.save(state, file))
        for old in find_checkpoints(self.path)[: -self.keep_checkpoints]:
            old.unlink()

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, after cutting the logs back to it; None for a new run.

        Its tensors are mapped from the file: nothing is read before it is used. A newer checkpoint that
        cannot be read is put aside under another name. Errors: UserError if none can be read.
        """
        found, unreadable, reason = None, [], ""
        for path in reversed(find_checkpoints(self.path)):
            try:
                found = self.read(path)
                break
            except Exception as error:
                unreadable.append(path)
                reason = reason or f"{type(error).__name__}: {one_line(error)[:200]}"
        if unreadable and not found:
            raise UserError(
                f"The checkpoint {unreadable[0]} cannot be read ({reason}): it is truncated or not of this "
                "version. Nothing was changed. Restore it from a copy, or start again with --overwrite."
            )
        for path in unreadable:
            path.rename(path.with_suffix(".unreadable"))
            print(f"The checkpoint {path} cannot be read ({reason}): resuming from the one before it.")
        for file in LOGS:
            if (self.path / file).exists():
                os.truncate(self.path / file, found["sizes"].get(file, 0) if found else 0)
        return found

    def read(self, path: Path) -> dict[str, Any]:
        """A checkpoint that the logs reach. Errors: whatever torch raises, KeyError, ValueError."""
        state, sizes = read_checkpoint(path), self.sizes()
        state["optimizer"]
        if any(sizes[file] < size for file, size in state["sizes"].items()):
            raise ValueError("the logs are shorter than when it was written")
        return state

    def sizes(self) -> dict[str, int]:
        """Bytes of the logs: a resumed run cuts them back to the checkpoint's, also through a half-written
        line.
        """
        return {f: (self.path / f).stat().st_size if (self.path / f).exists() else 0 for f in LOGS}


# ---------------------------------------------------------------- what can be seen of a run


class Pictures:
    """What plots/ makes of a run folder, in processes of their own: training continues meanwhile, also if
    they fail, which is mentioned once.
    """

    def __init__(self, folder: Path):
        self.folder, self.mentioned = folder, False
        self.process: subprocess.Popen[bytes] | None = None
        self.began = -math.inf

    def refresh(self) -> None:
        """Begin to write report.html anew, at low priority, unless that has begun a short while ago."""
        if time.monotonic() - self.began < REFRESH_SECONDS or self.process and self.process.poll() is None:
            return
        self.began = time.monotonic()
        if self.process and self.process.returncode:
            self.mention(self.process.communicate()[1].decode(errors="replace"))
        # in a session of its own: Ctrl-C is for the training
        try:
            self.process = subprocess.Popen(
                self.command("report"),
                cwd=HERE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            os.setpriority(os.PRIO_PROCESS, self.process.pid, LOW_PRIORITY)
        # it has ended already
        except ProcessLookupError:
            pass
        except OSError as error:
            self.mention(str(error))

    def command(self, what: str) -> list[str | Path]:
        """What plots/__main__.py takes, in this repository's folder."""
        return [sys.executable, "-m", "plots", what, self.folder.resolve(), Path.cwd()]

    def mention(self, error: str) -> None:
        if not self.mentioned:
            # of a traceback
            last = error.strip().rpartition("\n")[2]
            tqdm.write(f"report.html could not be refreshed ({last}); training continues")
        self.mentioned = True

    def finish(self) -> str:
        """Draw all figures and write the report, at once, and wait for both; what they have to say for the
        terminal.
        """
        if self.process and self.process.poll() is None:
            # it takes its half-written file away
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
        told = []
        try:
            both = [
                subprocess.Popen(
                    self.command(what), cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                for what in ("figures", "report")
            ]
            told = [process.communicate()[0].decode(errors="replace").strip() for process in both]
        except OSError as error:
            told.append(f"Nothing drawn: {error}")
        return "\n".join(filter(None, told))


# ---------------------------------------------------------------- a run's time and its end


class Interrupt:
    """The first Ctrl-C lets the step finish and saves; the second one stops at once."""

    def __enter__(self) -> "Interrupt":
        self.asked = False
        self.before = [(s, signal.signal(s, self.ask)) for s in (signal.SIGINT, signal.SIGTERM)]
        return self

    def ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write(
            "\nstopping after this step or evaluation (Ctrl-C again stops at once; the last checkpoint stays)"
        )

    def __exit__(self, *_: object) -> None:
        for s, handler in self.before:
            signal.signal(s, handler)


class Clock(dict[str, float]):
    """Seconds by phase: `with clock("sample"): ...`. `lap` adds what has passed to "total"."""

    def __init__(self) -> None:
        super().__init__()
        self.mark = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self[phase] = self.get(phase, 0.0) + time.perf_counter() - begin

    def lap(self) -> float:
        """Seconds since the last lap, which `total` then includes."""
        now = time.perf_counter()
        passed, self.mark = now - self.mark, now
        self["total"] = self.get("total", 0.0) + passed
        return passed
