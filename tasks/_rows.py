"""Rows of a data set: from a JSONL or parquet file, or from the Hugging Face hub."""

import json
import re
from pathlib import Path


class TaskError(ValueError):
    """A task, option, template or data file that cannot be used: one paragraph for the person who asked."""


def read_rows(source, required, optional=(), config=None, split="train", remedy=""):
    """Rows as a list of dicts that hold the `required` fields and, where a row has them, the `optional` ones.

    source: a .jsonl or .parquet file, or a hub id `owner/name`, of which `config` and `split` are read.
    A required field may be "one|other": either will do. None in a required field counts as missing.
    remedy: what to do without the hub. Errors: TaskError, which says what was found and what was expected.
    """
    source, path = str(source), Path(source).expanduser()
    fields = [*dict.fromkeys(name for field in (*required, *optional) for name in field.split("|"))]
    if path.suffix in (".jsonl", ".json", ".parquet") or path.exists():
        if not path.is_file():
            raise TaskError(f"No data file {source!r} (looked for {path.resolve()}).")
        try:
            rows = _read_parquet(path, fields) if path.suffix == ".parquet" else _read_jsonl(path)
        except (OSError, UnicodeDecodeError, ImportError) as error:
            raise TaskError(f"The data file {source!r} cannot be read: {error}") from error
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        rows = _read_hub(source, fields, config, split, remedy)
    else:
        raise TaskError(f"{source!r} is neither a .jsonl or .parquet file nor a hub id such as owner/name.")
    if not rows:
        raise TaskError(f"The data set {source!r} holds no rows.")
    for number, row in enumerate(rows, 1):
        if missing := [f for f in required if all(row.get(name) is None for name in f.split("|"))]:
            lacks, expected = (", ".join(names).replace("|", " or ") for names in (missing, required))
            raise TaskError(
                f"Row {number} of {source!r} lacks {lacks}: found the fields "
                f"{', '.join(row) or '(none)'}, expected {expected}."
            )
    return [{field: row[field] for field in fields if field in row} for row in rows]


def _read_jsonl(path):
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TaskError(
                    f"Line {number} of '{path}' is not JSON ({error}): {line[:60].rstrip()!r}."
                ) from error
            if not isinstance(row, dict):
                raise TaskError(
                    f"Line {number} of '{path}' holds a {type(row).__name__}: expected one object a line."
                )
            rows.append(row)
    return rows


def _read_parquet(path, fields):
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return _table_rows(file.read, file.schema_arrow.names, fields)
    except pyarrow.ArrowException as error:
        raise TaskError(f"The data file '{path}' is not a readable parquet file: {error}") from error


def _read_hub(name, fields, config, split, remedy):
    try:
        import datasets

        data = datasets.load_dataset(name, *([config] if config else []), split=split)
    except Exception as error:  # no network, no access, no such data set, no `datasets`: one remedy for all
        remedy = remedy or (
            f"run `hf download {name} --repo-type dataset --local-dir DIR`, bring its parquet file here and "
            "pass data=FILE"
        )
        raise TaskError(
            f"There is no file {name!r} here, and it could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {str(error)[:200]}). On a machine with network {remedy}."
        ) from error
    return _table_rows(lambda columns: data.select_columns(columns).data.table, data.column_names, fields)


def _table_rows(read, names, fields):
    """Only the columns that are asked for; where none is there, all, so that the error can name them."""
    return read([field for field in fields if field in names] or names).to_pylist()
