"""Records of facts, read from files (JSONL, JSON, CSV, TSV, Parquet), from chat records, and from data sets of the hub.

Every reader yields (where, values): where names the file and the line, record or row ("facts.jsonl: line 7"), values are plain JSON
values, which `to_fact` turns into a fact. All but a JSON list is streamed. Text is UTF-8, with or without a byte order mark; ".jsonl.gz"
is unpacked. Data sets come through the `datasets` library; no code that comes with one is run.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixsd.errors import UserError, did_you_mean
from mixsd.facts.answers import last_boxed
from mixsd.facts.fact import FIELDS, Fact, check_fields, fact_from_mapping, kind, shown

Records = Iterator[tuple[str, dict[str, Any]]]

_LISTS = ("aliases", "paraphrases")
_DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon"}


def read_jsonl(path: Path) -> Records:
    """Yield the objects of a file with one JSON object per line; blank lines are skipped."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield where, _object(_parse(line.rstrip("\r\n"), where), where)


def read_json(path: Path) -> Records:
    """Yield the objects of a file that holds one JSON list."""
    text = "".join(_lines(path))
    try:
        values = _parse(text, str(path)) if text.strip() else []
    except UserError as error:
        raise UserError(str(error).replace("(Extra data", "(one object per line is .jsonl; Extra data")) from None
    if not isinstance(values, list):
        raise UserError(f"{path}: expected one list of facts, [{{...}}, ...]")
    for number, value in enumerate(values, 1):
        where = f"{path}: record {number}"
        yield where, _object(value, where)


def read_csv(path: Path, columns: Sequence[str] = (), delimiter: str = ",") -> Records:
    """Yield the rows of a table whose first row names the fields: those of a fact, or any among which `columns` are.

    An empty cell is an absent field; `aliases` and `paraphrases` are a JSON list or texts separated by "|"; `meta` is JSON. The line
    is the one where the row begins. Quoting is strict: a stray quote would otherwise swallow the rows after it.
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
            mend = f"put quotes around a cell that contains {_DELIMITERS[delimiter]}"
            raise UserError(f"{where}: {len(row)} cells, but the header names {len(header)}; {mend}")
        cells = zip(header, row, strict=False)
        yield where, {name: _cell(name, cell, where) for name, cell in cells if cell.strip()}


def _header(row: list[str], delimiter: str, where: str, columns: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in row]
    if len(names) == 1:
        for other, word in _DELIMITERS.items():
            if other in names[0] and other != delimiter:
                raise UserError(f"{where}: the columns are separated by {word}, expected {_DELIMITERS[delimiter]}")
    named = set(names).issuperset(columns or ("question", "answer"))
    if not columns:
        # A typed name gives the better message; without one, the header is probably missing altogether.
        check_fields(names, where if named else f"{where}: the first line must name the columns")
    if not named:
        wanted = ", ".join(columns) or "question and answer"
        raise UserError(f"{where}: the first line must name the columns, {wanted} among them")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: column {name} is there twice")
    return names


def _cell(name: str, cell: str, where: str) -> Any:
    text = cell.strip()
    if name == "meta" or (name in _LISTS and text.startswith("[") and text.endswith("]")):
        return _parse(text, f"{where}: field {name}")
    return cell.split("|") if name in _LISTS else cell


def read_parquet(path: Path) -> Records:
    """Yield the rows of a Parquet file, a thousand at a time. Needs pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow; install it with: pip install 'mixsd[data]'") from None
    with _opened(path) as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches(batch_size=1000)
            for number, values in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield f"{path}: row {number}", values
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


# Files by suffix.
FORMATS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".parquet": read_parquet,
}


@cache
def bundled_text(name: str) -> str:
    """A file that comes with mixsd, as text."""
    return (files("mixsd") / "data" / name).read_text(encoding="utf-8")


@cache
def bundled_records(name: str) -> list[dict[str, Any]]:
    """The records of a JSONL file that comes with mixsd."""
    return [json.loads(line) for line in bundled_text(name).splitlines()]


@cache
def bundled_rows(name: str) -> list[dict[str, str]]:
    """The lines of a TSV file that comes with mixsd as records by its header; a line that begins with # is a comment."""
    header, *lines = [line.split("\t") for line in bundled_text(name).splitlines() if line and not line.startswith("#")]
    return [dict(zip(header, line, strict=True)) for line in lines]


def read_demo() -> Records:
    """Yield the records of the bundled demo corpus."""
    return ((f"demo: fact {number}", values) for number, values in enumerate(bundled_records("demo_facts.jsonl"), 1))


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
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


# JSON as the standard has it: Python's own reader takes NaN and lets the last of two equal names win.
_decode: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant).decode


def _parse(text: str, where: str) -> Any:
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{where}: not valid JSON ({error.msg} at {line}character {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{where}: expected an object, {{"question": ..., "answer": ...}}, got {kind(value)}')
    return value


class Form(BaseModel):
    """The base of what a file's values must be: of these types, without conversion."""

    model_config = ConfigDict(strict=True, frozen=True)


F = TypeVar("F", bound=Form)


def in_form(form: type[F], values: Any, where: str, mend: str = "") -> F:
    """Check plain values; the first that is wrong is a `UserError` that begins with `where` and names the field.

    Places in a list are counted from 1, as records and lines are.
    """
    try:
        return form.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ", ".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
        message = message[0].lower() + message[1:]
        raise UserError(f"{where}: {f'field {place}: ' if place else ''}{message}{mend}") from None


class _Turn(Form, extra="forbid"):
    role: str
    content: str

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, turn: Any) -> Any:  # a table has every column in each turn
        return {name: value for name, value in turn.items() if value is not None} if isinstance(turn, Mapping) else turn


class _Mixed(Form):
    ground_truth_assistant: str | None = None
    correct: Any = None


class _Chat(Form):
    messages: list[_Turn] = Field(strict=False)
    clear_answer: str | None = None
    mix_meta: _Mixed = _Mixed()


def to_fact(values: Mapping[str, Any], where: str) -> Fact:
    """Make a fact of one record: a chat record if it has `messages`, else the plain fields."""
    if values.get("messages") is not None:
        return fact_from_messages(values, where)
    return fact_from_mapping({name: value for name, value in values.items() if name != "messages"}, where)


def fact_from_messages(values: Mapping[str, Any], where: str) -> Fact:
    """Make a fact of a record with `messages`, a user turn that asks and an assistant turn that states, as the MixSD authors publish.

    `clear_answer` is the statement. The other fields of a fact may stand beside `messages`; any further key is kept in `meta`. Without
    `answer`, it is the last box of the reply. In a file of mixed targets the reply is what the model wrote: `mix_meta` then has the
    `ground_truth_assistant`, whose box goes first, and whether the reply was `correct`; a rejected one is never a reference: the ground
    truth is, or else the statement, where the answer stands beside it. Of several replies to one question the first decides.
    """
    rest = {name: value for name, value in values.items() if value is not None}
    chat = in_form(_Chat, rest, where)
    roles = [turn.role for turn in chat.messages]
    if "system" in roles:
        raise UserError(f"{where}: field messages: a system turn belongs to the run, not to a fact; remove it and pass --system")
    if roles != ["user", "assistant"]:
        found = ", ".join(roles) or "none"
        raise UserError(f"{where}: field messages: expected one user turn, then one assistant turn; found: {found}")
    question, reply = (turn.content for turn in chat.messages)
    del rest["messages"]
    said = {"question": "the user turn", "reference": "the assistant turn"}
    if rest.pop("clear_answer", None) is not None:
        said["statement"] = "clear_answer"
    for name, place in said.items():
        if name in rest:
            raise UserError(f"{where}: field {name}: {place} says it already; leave one out")
    fields: dict[str, Any] = {name: rest.pop(name) for name in FIELDS if name in rest}
    if "statement" in said:
        fields["statement"] = chat.clear_answer
    meta = fields.get("meta", {})
    if isinstance(meta, dict):  # else the fact refuses it
        if both := rest.keys() & meta.keys():
            raise UserError(f"{where}: {shown(min(both))} is both beside messages and in meta; leave one out")
        fields["meta"] = {**meta, **rest}
    truth, accepted = chat.mix_meta.ground_truth_assistant, chat.mix_meta.correct is not False
    if not accepted and truth is None and "answer" not in fields:
        raise UserError(f"{where}: a rejected target (mix_meta.correct is false) is no reference; leave this record out")
    if "answer" not in fields:
        fields["answer"] = (last_boxed(reply if truth is None else truth) or "").strip()
        if not fields["answer"]:
            raise UserError(f"{where}: field answer: missing, and the assistant turn has no \\boxed{{...}}; add answer")
    reference = reply if accepted else truth
    if reference is not None and not reference.strip():
        raise UserError(f"{where}: field messages: the assistant turn is empty")
    return fact_from_mapping({**fields, "question": question, "reference": reference}, where)


def read_hub(source: str, *, config: str | None = None, offline: bool = False) -> Records:
    """Yield the rows of "org/name" or "org/name:split" (needed where there are several), in one of its configurations."""
    if offline:
        raise UserError(f"{source}: no such file, and a data set of the hub cannot be fetched offline; name a local file")
    name, _, split = source.partition(":")
    failed = "neither a file nor a data set that could be fetched"
    yield from _rows(
        _loaded(source, failed, lambda library: library.load_dataset(name, *([config] if config else []))), split, source
    )


def read_folder(folder: Path) -> Records:
    """Yield the rows of a local folder: one that `save_to_disk` wrote, or one of data files in a format `datasets` knows."""
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    load = "load_from_disk" if saved else "load_dataset"
    failed = "not a data set that can be read"
    yield from _rows(_loaded(str(folder), failed, lambda library: getattr(library, load)(str(folder))), "", str(folder))


def _loaded(source: str, failed: str, load: Callable[[Any], Any]) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: reading a data set needs datasets; install it with: pip install 'mixsd[data]'") from None
    try:
        return load(datasets)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: {failed} ({reason})") from error


def _rows(data: Any, split: str, source: str) -> Records:
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
