"""Records of facts, read from files (JSONL, JSON, CSV, TSV, Parquet), from chat records, and from data sets of the hub.

Every reader yields (where, values): where names the file and the line, record or row ("facts.jsonl: line 7"), values are
plain JSON values, which `to_fact` turns into a fact. Line formats and Parquet are streamed; a JSON list is read whole: it has no lines
to stop at. All text is UTF-8, with or without a byte order mark; ".jsonl.gz" is unpacked.

A chat record is a user turn that asks and an assistant turn that states, as in the MixSD authors' published files: the answer is in the
last \\boxed{...} of the reply. In their files of mixed targets the reply is what the model wrote, `mix_meta.ground_truth_assistant` the
reference it was mixed from, and `mix_meta.correct` says whether the reply was accepted. So the answer is read from the ground truth
where there is one, and a rejected reply is never a reference: the ground truth is, or else the statement, where the answer stands beside
it. Several replies to one question (`gen_index`) are one fact; the first decides its reference.

Data sets come through the `datasets` library. A folder is read where it lies; a hub name needs the network, and is refused before
anything is tried when that is forbidden. No code that comes with a data set is run.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from mixsd.errors import UserError, did_you_mean
from mixsd.facts.answers import last_boxed
from mixsd.facts.fact import FIELDS, Fact, check_fields, fact_from_mapping, kind, shown

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


def to_fact(values: Mapping[str, Any], where: str) -> Fact:
    """Make a fact of one record: a chat record if it has `messages`, else the plain fields."""
    if values.get("messages") is not None:
        return fact_from_messages(values, where)
    return fact_from_mapping({name: value for name, value in values.items() if name != "messages"}, where)


def fact_from_messages(values: Mapping[str, Any], where: str) -> Fact:
    """Make a fact of a record with `messages`: one user and one assistant turn, each with `role` and `content`.

    `clear_answer` is the statement. The other fields of a fact may stand beside `messages`; any further key, such as `mix_meta`,
    is kept in `meta` under its own name. Without `answer`, the answer is the last box of the reply. Errors begin with `where`.
    """
    rest = {name: value for name, value in values.items() if value is not None}
    question, reply = _turns(rest.pop("messages"), where)
    said = {"question": "the user turn", "reference": "the assistant turn"}
    if "clear_answer" in rest:
        said["statement"] = "clear_answer"
    for name, place in said.items():
        if name in rest:
            raise UserError(f"{where}: field {name}: {place} says it already; leave one out")
    fields: dict[str, Any] = {name: rest.pop(name) for name in FIELDS if name in rest}
    if "clear_answer" in rest:
        fields["statement"] = _text(rest.pop("clear_answer"), f"{where}: field clear_answer")
    if rest:
        fields["meta"] = _merged(fields.get("meta", {}), rest, where)
    truth, accepted = _mixed(rest.get("mix_meta"), where)
    if not accepted and truth is None and "answer" not in fields:
        raise UserError(f"{where}: a rejected target (mix_meta.correct is false) is no reference; leave this record out")
    reference = reply if accepted else truth
    if "answer" not in fields:
        fields["answer"] = (last_boxed(reply if truth is None else truth) or "").strip()
        if not fields["answer"]:
            raise UserError(f"{where}: field answer: missing, and the assistant turn has no \\boxed{{...}}; add answer")
    if reference is not None and not reference.strip():
        raise UserError(f"{where}: field messages: the assistant turn is empty")
    return fact_from_mapping({**fields, "question": question, "reference": reference}, where)


def _turns(messages: Any, where: str) -> tuple[str, str]:
    where = f"{where}: field messages"
    if not isinstance(messages, list | tuple):
        raise UserError(f"{where}: expected a list of two turns, got {kind(messages)}")
    turns = [_turn(message, f"{where}, turn {number}") for number, message in enumerate(messages, 1)]
    roles = [role for role, _ in turns]
    if "system" in roles:
        raise UserError(f"{where}: a system turn belongs to the run, not to a fact; remove it and pass --system")
    if roles != ["user", "assistant"]:
        found = ", ".join(roles) or "none"
        raise UserError(f"{where}: expected one user turn, then one assistant turn; found: {found}")
    return turns[0][1], turns[1][1]


def _turn(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise UserError(f"{where}: expected an object with role and content, got {kind(message)}")
    # A list of parts as content would otherwise reach the prompt as its Python notation.
    role, content = (_text(message.get(name), f"{where}: {name}") for name in ("role", "content"))
    for name, value in message.items():
        if name not in ("role", "content") and value is not None:
            raise UserError(f"{where}: unknown key {shown(str(name))}; a turn has role and content")
    return role, content


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text, got {kind(value)}")
    return value


def _merged(meta: Any, rest: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(meta, dict):
        raise UserError(f"{where}: field meta: expected an object, got {kind(meta)}")
    for name in rest:
        if name in meta:
            raise UserError(f"{where}: {shown(name)} is both beside messages and in meta; leave one out")
    return {**meta, **rest}


def _mixed(mix_meta: Any, where: str) -> tuple[str | None, bool]:
    """Return the ground truth of a mixed target, if there is one, and whether its reply may be taken for a reference."""
    if mix_meta is None:
        return None, True
    if not isinstance(mix_meta, Mapping):
        raise UserError(f"{where}: field mix_meta: expected an object, got {kind(mix_meta)}")
    truth = mix_meta.get("ground_truth_assistant")
    if truth is not None:
        truth = _text(truth, f"{where}: field mix_meta: ground_truth_assistant")
    return truth, mix_meta.get("correct") is not False


def read_hub(source: str, *, config: str | None = None, offline: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of "org/name" or "org/name:split". A data set with several splits needs one named.

    `config`: which of the data set's configurations, where it has several.
    """
    if offline:
        raise UserError(f"{source}: no such file, and a data set of the hub cannot be fetched offline; name a local file")
    library = _library(source)
    name, _, split = source.partition(":")
    try:
        data = library.load_dataset(name, *([config] if config else []))
    except Exception as error:
        raise UserError(f"{source}: neither a file nor a data set that could be fetched ({_first_line(error)})") from error
    yield from _rows(data, split, source)


def read_folder(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a local folder: one that `save_to_disk` wrote, or one of data files in a format `datasets` knows."""
    library = _library(str(folder))
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        data = library.load_from_disk(str(folder)) if saved else library.load_dataset(str(folder))
    except Exception as error:
        raise UserError(f"{folder}: not a data set that can be read ({_first_line(error)}); name a file") from error
    yield from _rows(data, "", str(folder))


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: reading a data set needs datasets; install it with: pip install 'mixsd[data]'") from None
    return datasets


def _rows(data: Any, split: str, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # A mapping of splits and a single split are both possible, depending on how the folder was saved.
    if isinstance(data, Mapping):
        splits = list(data)
        if split and split not in splits:
            raise UserError(f'{source}: no split "{split}"{did_you_mean(split, splits)}; it has {", ".join(splits)}')
        if not split and len(splits) != 1:
            raise UserError(f"{source}: name the split after a colon, as in {source}:{splits[0]}; it has {', '.join(splits)}")
        data = data[split or splits[0]]
    for number, row in enumerate(data, 1):
        yield f"{source}: row {number}", dict(row)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
