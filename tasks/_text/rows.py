"""Rows of a data set: from a JSONL, JSON or parquet file, or from the Hugging Face hub."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# A row as JSON gives it.
Row = dict[str, Any]

# In a data set of fewer rows than this, every row must be usable.
SMALL = 100


class TaskError(ValueError):
    """A task, option, template or data file that cannot be used: one paragraph for the user."""


class BadRow(ValueError):
    """One row that cannot be used. The message continues "Row 7 of 'rows.jsonl' ..."."""


def json_lines(text: str) -> list[tuple[int, str]]:
    """(line number, line) of every line of a JSONL text that is not blank.

    Only a line feed ends a line: str.splitlines would also split at U+2028, which JSON allows in a string.
    """
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_jsonl(path: Path) -> list[Any]:
    """The values of a JSONL file, one per line. Errors: OSError, ValueError."""
    return [json.loads(line) for _, line in json_lines(path.read_text(encoding="utf-8"))]


def read_rows(
    source: str | Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    config: str | None = None,
    split: str = "train",
    remedy: str = "",
    convert: Callable[[Row], Any] | None = None,
) -> list[Any]:
    """Rows as dicts that hold the `required` fields and, where a row has them, the `optional` ones.

    source: a .jsonl, .json (one object per line, or an array of objects) or .parquet file, or a hub id
    `owner/name`, of which `config` and `split` are read.
    A required field may be "one|other": one of the two suffices. None in a required field counts as missing.
    convert: row -> what is returned instead of it; it raises BadRow where a row cannot be used.
    remedy: what to do without the hub. Errors: TaskError, which says what was found and what was expected.

    Rows that cannot be used are an error in a data set of fewer than SMALL rows, or where they are more than
    half of all rows. Otherwise they are left out, and a line on stderr counts and names them. Rows are
    counted from 1; in a file of one object per line they are its lines.
    """
    source = str(source)
    fields = [*dict.fromkeys(name for field in (*required, *optional) for name in field.split("|"))]
    rows = _load(source, fields, config, split, remedy)
    if not rows:
        raise TaskError(f"The data set {source!r} holds no rows.")
    good, bad = [], []
    for number, row in rows:
        try:
            _check(row, required)
            known = {field: row[field] for field in fields if field in row}
            good.append(convert(known) if convert else known)
        except BadRow as error:
            bad.append(f"Row {number} of {source!r} {error}")
    if bad and (len(rows) < SMALL or len(bad) > len(rows) / 2):
        raise TaskError(f"{bad[0]}. {len(bad)} of {len(rows)} rows cannot be used: correct or delete them.")
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        _warn(f"{len(bad)} of {len(rows)} rows are left out: {'; '.join(bad[:3])}{more}.")
    return good


SURROGATE = re.compile("[\ud800-\udfff]")


# Cached, because a task reads the same file for both of its splits.
@cache
def _warn(message: str) -> None:
    print(f"tinyr1: {message}", file=sys.stderr)


def _load(
    source: str, fields: list[str], config: str | None, split: str, remedy: str
) -> list[tuple[int, Any]]:
    """[(number, row)] of a file or of the hub; a row that cannot be read is a BadRow. Errors: TaskError."""
    path = Path(source).expanduser()
    if path.suffix in (".jsonl", ".json", ".parquet") or path.exists():
        if not path.is_file():
            raise TaskError(f"No data file {source!r} (looked for {path.resolve()}).")
        try:
            return _read_parquet(path, fields) if path.suffix == ".parquet" else _read_json(path)
        except UnicodeDecodeError as error:
            raise TaskError(
                f"The data file {source!r} cannot be read: it is not UTF-8 (byte {error.start + 1} is "
                f"0x{error.object[error.start]:02x}). Convert it, e.g. iconv -f UTF-16 -t UTF-8 FILE > NEW."
            ) from error
        except (OSError, ImportError) as error:
            raise TaskError(f"The data file {source!r} cannot be read: {error}") from error
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return _read_hub(source, fields, config, split, remedy)
    raise TaskError(
        f"{source!r} is neither a .jsonl, .json or .parquet file nor a hub id such as owner/name."
    )


def _check(row: object, required: Sequence[str]) -> None:
    """Errors: BadRow, of a row that is no object, lacks a field, or holds half a character."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"holds a {type(row).__name__}: expected one object per row")
    if any(isinstance(value, str) and SURROGATE.search(value) for value in row.values()):
        raise BadRow("holds half a character (a lone surrogate such as \\ud800)")
    if missing := [f for f in required if all(row.get(name) is None for name in f.split("|"))]:
        lacks, expected = (", ".join(names).replace("|", " or ") for names in (missing, required))
        raise BadRow(f"lacks {lacks}: found the fields {', '.join(row) or '(none)'}, expected {expected}")


def _read_json(path: Path) -> list[tuple[int, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return [(number, _parse(line)) for number, line in json_lines(text)]
    try:
        return [*enumerate(json.loads(text), 1)]
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"The data file '{path}' begins like a JSON array and is not one ({error}): expected "
            "[{...}, {...}], or one object per line."
        ) from error


def _parse(line: str) -> Any:
    """The value of a line, a BadRow if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not JSON ({error}): {line[:60].rstrip()!r}")


def _read_parquet(path: Path, fields: list[str]) -> list[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return _table_rows(file.read, file.schema_arrow.names, fields)
    except pyarrow.ArrowException as error:
        raise TaskError(f"The data file '{path}' is not a readable parquet file: {error}") from error


def _read_hub(
    name: str, fields: list[str], config: str | None, split: str, remedy: str
) -> list[tuple[int, Any]]:
    try:
        import datasets

        data = datasets.load_dataset(name, *([config] if config else []), split=split)
    # No network, no access, no such data set, no `datasets`: one remedy for all.
    except Exception as error:
        remedy = remedy or (
            f"run `hf download {name} --repo-type dataset --local-dir DIR`, copy its parquet file to this "
            "machine and pass data=FILE"
        )
        raise TaskError(
            f"There is no file {name!r} here, and it could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {str(error)[:200]}). On a machine with network {remedy}."
        ) from error
    return _table_rows(lambda columns: data.select_columns(columns).data.table, data.column_names, fields)


def _table_rows(
    read: Callable[[list[str]], Any], names: list[str], fields: list[str]
) -> list[tuple[int, Any]]:
    """The columns that are asked for; where the table has none of them, all, so that the error names them."""
    rows = read([field for field in fields if field in names] or names).to_pylist()
    return [*enumerate(rows, 1)]
