"""Rows of a table: JSON lines, CSV or Parquet, each row as an object from columns to values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from musiclm_jax.data.text_files import read_text
from musiclm_jax.errors import UserError, unreadable
from musiclm_jax.files import AnyPath

Row = dict[str, Any]


def read_rows(path: AnyPath) -> tuple[list[tuple[int, Row]], list[str]]:
    """Reads a table by its suffix. Returns (the rows with their numbers, from 1, as a text editor counts the lines of a text; warnings).

    Only "\\n" ends a line of JSON: U+2028 and U+0085 may occur in a string. In CSV the first line names the columns, an empty cell is a missing value, and a
    cell that begins with a bracket or a brace is read as JSON. Missing values of Parquet are left out.

    Raises:
        UserError: the file cannot be read, or a row is not an object. The message has the file and the number of the row.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path), []
    text, windows = read_text(path)
    rows = _read_csv(path, text) if path.suffix == ".csv" else _read_jsonl(path, text)
    return list(rows), [f"{path} is not UTF-8 and was read as Windows-1252: save it as UTF-8 if letters are wrong"] if windows else []


def _read_jsonl(path: AnyPath, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f'{path} line {number} is not a JSON object with "file_name" and "captions": correct that line')
        yield number, row


def _read_csv(path: AnyPath, text: str) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = next(reader, [])
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(columns):
                advice = "put texts with commas in quotes"
                raise UserError(f"{path} line {reader.line_num} has {len(cells)} cells where its first line has {len(columns)}: {advice}")
            yield reader.line_num, {name.strip(): _cell(cell) for name, cell in zip(columns, cells, strict=True) if cell.strip()}
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not CSV ({error}): correct that line") from None


def _cell(text: str) -> Any:
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text  # A caption may begin with a bracket.
    return text


def _read_parquet(path: AnyPath) -> list[tuple[int, Row]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: Parquet needs the package pyarrow; install it with: pip install 'musiclm-jax[data]'") from error
    try:
        rows = parquet.read_table(io.BytesIO(path.read_bytes())).to_pylist()
    except OSError as error:
        raise unreadable(path, error) from error
    except ArrowException as error:
        raise UserError(f"{path} is not a Parquet file ({str(error).splitlines()[0]}): write it again") from error
    return [(number, {name: value for name, value in row.items() if value is not None}) for number, row in enumerate(rows, start=1)]
