"""What the pictures of a folder show: `metadata.jsonl` or `metadata.csv`, text files beside them, or their names."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError

TABLES = ("metadata.jsonl", "metadata.csv")
"""The tables of captions of the `datasets` library's image folders: one row a picture, with its `file_name`."""
COLUMNS = ("text", "caption", "prompt")
"""Columns that are taken for the caption, the first that is there."""


def listed(folder: Path) -> dict[Path, str] | None:
    """Pictures and captions of the folder's table, in its order; None where there is none.

    Raises:
        FewstepError: two tables, or a row that is no row, has no caption, or names no file.
    """
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if not tables:
        return None
    if len(tables) > 1:
        raise FewstepError(f"{folder} holds two tables of captions", value=list(TABLES), hint="Keep one of them.")
    found: dict[Path, str] = {}
    for number, row in (_lines if tables[0].suffix == ".jsonl" else _rows)(tables[0]):
        where, name = f"line {number} of {tables[0]}", row.get("file_name")
        column = next((column for column in COLUMNS if column in row), None)
        if not isinstance(name, str) or column is None:
            hint = f"Every row needs file_name and one of {', '.join(COLUMNS)}."
            raise FewstepError(f"{where} names no picture with its caption", value=list(row), hint=hint)
        if not isinstance(row[column], str):
            raise FewstepError(f"the caption in {where} is not text", value=row[column], hint="Write one text.")
        file = folder / name
        if not file.is_file():
            raise FewstepError(
                f"{where} names a picture that is not there", value=name, hint="Paths begin at its folder."
            )
        if file in found:
            raise FewstepError(f"{where} names a picture a second time", value=name, hint="Keep one row a picture.")
        found[file] = _caption(row[column])
    return found


def table_column(folder: Path, name: str) -> dict[Path, Any]:
    """What another column of the folder's table says of its pictures, where it says something."""
    table = next((folder / file for file in TABLES if (folder / file).is_file()), None)
    if table is None:
        return {}
    rows = (_lines if table.suffix == ".jsonl" else _rows)(table)
    return {folder / row["file_name"]: row[name] for _, row in rows if row.get(name) not in (None, "")}


def caption_beside(file: Path) -> str:
    """The text in the `.txt` of the same name, else the file name with _ and - as spaces.

    Raises:
        FewstepError: the text file cannot be read.
    """
    note = file.with_suffix(".txt")
    return _caption(_text(note) if note.exists() else file.stem.replace("_", " ").replace("-", " "))


def _caption(text: str) -> str:
    """Composed characters: file names on macOS come decomposed, and tokenizers tell the two apart."""
    return unicodedata.normalize("NFC", text.strip())


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FewstepError(f"line {number} of {file} is not JSON: {error}", hint="One object a line.") from error
        if not isinstance(row, dict):
            raise FewstepError(f"line {number} of {file} is no JSON object", value=row, hint="One object a line.")
        yield number, row


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""))
    try:
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise FewstepError(f"{file} is not CSV: {error}", hint="Its first line names the columns.") from error


def _text(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark, as Windows writes them."""
    try:
        data = file.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FewstepError(f"cannot read {file}: {error}", hint="Save it as UTF-8 text.") from error
