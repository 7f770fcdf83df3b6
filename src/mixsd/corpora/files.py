"""Read records from files: JSONL, JSON, CSV, TSV and Parquet.

Every reader yields (where, values): where names the file and the line, record or row ("facts.jsonl: line 7"), values are
plain JSON values that `mixsd.facts` or `mixsd.corpora.messages` turns into a fact. Line formats and Parquet are streamed; a
JSON list is read whole: it has no lines to stop at. All text is UTF-8, with or without a byte order mark; ".jsonl.gz" is unpacked.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.facts import check_fields, kind, shown

Records = Iterator[tuple[str, dict[str, Any]]]

_LISTS = ("aliases", "paraphrases")


def read_jsonl(path: Path) -> Records:
    """Yield the objects of a file with one JSON object per line; blank lines are skipped."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield where, _object(_parse(line, where), where)


def read_json(path: Path) -> Records:
    """Yield the objects of a file that holds one JSON list."""
    hint = "expected one list of facts, [{...}, ...]; a file with one object per line is named .jsonl"
    text = "".join(_lines(path))
    if not text.strip():
        return
    try:
        values = _decode(text)
    except json.JSONDecodeError as error:
        more = f"; {hint}" if error.msg == "Extra data" else ""
        raise UserError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}){more}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, list):
        raise UserError(f"{path}: {hint}")
    for number, value in enumerate(values, 1):
        where = f"{path}: record {number}"
        yield where, _object(value, where)


def read_csv(path: Path, columns: Sequence[str] = ()) -> Records:
    """Yield the rows of a comma-separated file whose first row names the fields; see `_read_table`."""
    return _read_table(path, ",", columns)


def read_tsv(path: Path) -> Records:
    """Yield the rows of a tab-separated file whose first row names the fields; quoting is that of CSV; see `_read_table`."""
    return _read_table(path, "\t")


def read_parquet(path: Path) -> Records:
    """Yield the rows of a Parquet file, a thousand at a time. Needs pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow; install it with: pip install 'mixsd[data]'") from None
    with _opened(path) as file:
        number = 0
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", values
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def read_demo() -> Records:
    """Yield the records of the bundled demo corpus."""
    with as_file(files("mixsd") / "data" / "demo_facts.jsonl") as path:
        yield from read_jsonl(path)


def _read_table(path: Path, delimiter: str, columns: Sequence[str] = ()) -> Records:
    """An empty cell is an absent field; `aliases` and `paraphrases` are a JSON list or texts separated by "|"; `meta` is JSON.

    The fields are those of a fact, or any among which `columns` are. The line is the one where the row begins. Quoting is strict:
    a stray quote would otherwise swallow the rows after it.
    """
    # The limit is the module's, not the reader's; the default of 128 KiB per cell would refuse a long reference.
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        where = f"{path}: line {rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            mend = 'put a cell that contains " in quotes and double those inside'
            raise UserError(f"{where}: not a valid table ({error}); {mend}") from None
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if not header:
            header = _header(row, delimiter, where, columns)
            continue
        if len(row) > len(header):
            raise UserError(
                f"{where}: {len(row)} cells, but the header names {len(header)}; put quotes around a cell that contains "
                f"{_DELIMITERS[delimiter]}"
            )
        cells = zip(header, row, strict=False)
        yield where, {name: _cell(name, cell, where) for name, cell in cells if cell.strip()}


_DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon"}


def _header(row: list[str], delimiter: str, where: str, columns: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in row]
    if len(names) == 1:
        for other, word in _DELIMITERS.items():
            if other in names[0] and other != delimiter:
                raise UserError(f"{where}: the columns are separated by {word}, expected {_DELIMITERS[delimiter]}")
    if any(name not in names for name in columns or ("question", "answer")):
        # A typed name gives the better message; without one, the header is probably missing altogether.
        if not columns:
            check_fields(names, f"{where}: the first line must name the columns")
        wanted = ", ".join(columns) or "question and answer"
        raise UserError(f"{where}: the first line must name the columns, {wanted} among them")
    if not columns:
        check_fields(names, where)
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: column {name} is there twice")
    return names


def _cell(name: str, cell: str, where: str) -> Any:
    text = cell.strip()
    is_list = name in _LISTS and text.startswith("[") and text.endswith("]")
    if is_list or name == "meta":
        return _parse(text, f"{where}: field {name}")
    return cell.split("|") if name in _LISTS else cell


def _opened(path: Path) -> Any:
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path) -> Iterator[str]:
    # Bytes are split before they are decoded, so that a byte that is not UTF-8 is reported with its own line.
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}: line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: not a whole gzip file ({error})") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} is there twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


# JSON as the standard has it: Python's own reader takes NaN and lets the last of two equal names win.
_decode: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant).decode


def _parse(text: str, where: str) -> Any:
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{where}: expected an object, {{"question": ..., "answer": ...}}, got {kind(value)}')
    return value
