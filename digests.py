"""Digests of what a result depends on: the base model's files, the task's code and data."""

import ast
import os
import re
from hashlib import blake2b
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

HERE = Path(__file__).resolve().parent
MODEL_FILES = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja"}
WHOLE = 2**26  # bytes up to which a file is read as a whole
PIECE, PIECES = 2**16, 64  # of a larger one


def digest(files) -> str | None:
    """12 hex digits of the names and contents of files; None without any. Of a file larger than WHOLE, the
    size and pieces spread evenly over it, head and tail included: milliseconds for any model.
    """
    if not files:
        return None
    found = blake2b(digest_size=6)
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= WHOLE:
                found.update(file.read())
                continue
            for i in range(PIECES + 1):
                file.seek(i * (size - PIECE) // PIECES)
                found.update(file.read(PIECE))
    return found.hexdigest()


def model_folder(source: str) -> Path:
    """Where a model's files are: `minibase` is the miniature, a hub id its snapshot in the cache."""
    if source == "minibase" and not Path(source).exists():
        return HERE / "minibase"
    if not Path(source).exists():
        try:
            cached = try_to_load_from_cache(source, "config.json")
        except ValueError:  # no hub id
            cached = None
        if isinstance(cached, str):
            return Path(cached).parent
    return Path(source)


def model_files(source: str) -> list[Path]:
    """Weights, configuration and tokenizer; [] of a model that is not on this machine."""
    folder = model_folder(source)
    files = folder.iterdir() if folder.is_dir() else []
    return [path for path in files if path.suffix in MODEL_FILES and path.is_file()]


def task_files(task: str, options: list[str]) -> set[Path]:
    """The task's source, all that it imports from its own folder or from here, and the files that its
    options name.
    """
    source = Path(task) if task.endswith(".py") else HERE / "tasks" / f"{task}.py"
    found, ahead = set(), [source.resolve()]
    while ahead:
        path = ahead.pop()
        if path.is_file() and path not in found:
            found.add(path)
            ahead += imported(path)
    values = [option.partition("=")[2] for option in options]
    return found | {Path(value).resolve() for value in values if os.path.isfile(value)}


def imported(source: Path) -> set[Path]:
    """Where the Python files that `source` imports or names (as `worker.py`) would be, beside it or here."""
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):  # a stranger with the name of a module that is really elsewhere
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"\w+\.py", str(node.value)):
            names.add(node.value.removesuffix(".py"))
    places = [folder / name.replace(".", "/") for folder in (source.parent, HERE) for name in names - {""}]
    return {path.resolve() for place in places for path in (place.with_suffix(".py"), place / "__init__.py")}
