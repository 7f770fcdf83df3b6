"""What a terminal gets: results on stdout, progress of long work on stderr; never steered by what a model or a file says.

Colours are for a terminal that has them. Progress is a live bar there, now and then a line elsewhere, so that a log stays readable.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

from mixsd.formats import MISSING, Table, middle_clipped, number, printable, token_text
from mixsd.progress import Task, Watcher

if TYPE_CHECKING:
    from rich.progress import Progress

_MOST_PAIRS = 100  # of domains, on a terminal
_HIGH_NLL = 8.0  # nats; the paper's threshold
_NAMES = {"e": "expert", "n": "naive", "g": "gated", "r": "reference", None: "prompt"}
# Readable on dark and light backgrounds; the prompt is dim, since it is not trained on.
_COLOURS = {"e": "green", "n": "cyan", "g": "yellow", "r": "magenta"}
_STYLES = {source: f"black on bright_{colour}" for source, colour in _COLOURS.items()}
_SURPRISING = "underline"


def console() -> Console:
    """A console on today's stdout; rich decides on colours by the terminal and NO_COLOR."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def as_json(value: Any) -> None:
    """Write JSON values."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def tables(found: Iterable[Table], lines: Iterable[str] = ()) -> None:
    """Write tables, and lines below them."""
    for table in found:
        console().print(table.rich())
    for line in lines:
        print(printable(line))


def report(folder: Path) -> None:
    """Write the headline of a run's report, its requirements and warnings, and where everything is."""
    from mixsd.reports.schema import read_report
    from mixsd.reports.words import endings_table, headline, lines, warnings
    from mixsd.run.folder import Run

    run = Run(folder)
    found = read_report(run.report_json)
    endings = endings_table(found)
    tables([headline(found), *([endings.brief()] if endings else [])], lines(found))
    for item in found.requirements:
        value = "not measured" if item.value is None else number(item.value, 3)
        print(f"required {printable(item.text)}: {value}, {'holds' if item.passed else 'MISSED'}")
    for text in warnings(found):
        print(f"warning: {printable(text)}")
    if run.model.is_dir():
        print(f"model:  {run.model}")
    print(f"report: {run.report_html}")


def comparison(found: Mapping[str, Any]) -> None:
    """Write what `compare` found."""
    from mixsd.comparison import page

    tables(page.tables(found), page.lines(found))


def targets(folder: Path) -> None:
    """Write how many targets a run has, and where."""
    from mixsd.run.folder import Run
    from mixsd.storage import read_jsonl
    from mixsd.targets.target import Target, summarize

    file = Run(folder).targets_file
    statuses = summarize(map(Target.from_json, read_jsonl(file))).statuses
    counts = {status: f"{statuses[status]:,} {status}" for status in ("accepted", "rejected", "unusable") if statuses[status]}
    print(f"targets: {file} ({', '.join(counts.values())})")


def inspected(items: Sequence[Mapping[str, Any]]) -> None:
    """Write the items of `mixsd.inspect`: as coloured text on a terminal with colours, else one line per token."""
    out = console()
    coloured = out.color_system is not None and not out.no_color
    if coloured and items:
        legend = Text()
        for source, style in _STYLES.items():
            legend.append(f" {_NAMES[source]} ", style).append(" ")
        legend.append("prompt, not trained on", "dim").append("  ")
        out.print(legend.append(f"base NLL above {_HIGH_NLL:g} nats", _SURPRISING))
    for item in items:
        state = "accepted" if item["accepted"] else f"not accepted: {printable(item['reason'], keep='')}"
        place = f"lambda {item['lambda']:g}, sample {item['sample']}, attempt {item['attempt']}, {state}"
        changed = "" if item["canonical"] else ", its text encodes to other ids"
        out.print()
        out.print(Text.assemble((printable(item["id"], keep=""), "bold"), f"  {place}{changed}"), soft_wrap=True)
        if item["question"] is not None:
            out.print(Text(printable(item["question"])), soft_wrap=True)
        if coloured:
            out.print(_token_colours(item["tokens"]))
        else:
            _token_lines(out, item["tokens"])


def _token_colours(tokens: Sequence[Mapping[str, Any]]) -> Text:
    text = Text()
    for token in tokens:
        style = _STYLES[token["source"]] if token["supervised"] else "dim"
        if token["supervised"] and token["base_nll"] is not None and token["base_nll"] > _HIGH_NLL:
            style = f"{_SURPRISING} {style}"
        text.append(f"[{token['id']}]" if token["text"] is None else token_text(token["text"]), style)
    return text


def _token_lines(out: Console, tokens: Sequence[Mapping[str, Any]]) -> None:
    """Id, mask, source, base NLL and text of each token, in columns that a script can split on blanks up to the text."""
    out.print(f"{'id':>7}  trained  {'source':9}  {'nll':>7}  text")
    for token in tokens:
        trained = "yes" if token["supervised"] else "no"
        text = MISSING if token["text"] is None else repr(token["text"])
        nll = number(token["base_nll"], 3)
        out.print(f"{token['id']:>7}  {trained:7}  {_NAMES[token['source']]:9}  {nll:>7}  {text}", soft_wrap=True)


def replies(answer: Mapping[str, str]) -> None:
    """Write what base and tuned model reply: side by side where there is room, one below the other elsewhere."""
    from rich import box
    from rich.table import Table as RichTable

    out = console()
    if not out.is_terminal or out.width < 60:
        for name in ("base", "tuned"):
            print(f"{name + ':':6} {printable(answer[name])}")
        return
    made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for name in ("base", "tuned"):
        made.add_column(name, ratio=1)
    made.add_row(*(Text(printable(answer[name])) for name in ("base", "tuned")))
    out.print(made)


def plan(found: Mapping[str, Any]) -> None:
    """Write a dry run: what an injection would take. What the run has nothing of is left out."""
    facts, tokens, asked, parameters = (found[name] for name in ("facts", "tokens", "evaluation", "parameters"))
    training, editing, memory, disk = (found[name] for name in ("training", "editing", "memory", "disk"))
    stages = {name: gigabytes(part["total"]) for name, part in memory.items() if isinstance(part, Mapping) and part["total"]}
    fields = [("facts", f"{facts['asked']:,} asked, {facts['usable']:,} usable, {facts['duplicates']:,} given twice")]
    for name in ("naive", "expert", "reference"):
        fields.append((f"{name} tokens", f"{tokens[name]['mean']:.0f} on average, at most {tokens[name]['longest']:,}"))
    if tokens["decoded"]:
        parts = {name: f"{count:,}" for name, count in tokens.get("decoded_parts", {}).items() if count}
        split = f" ({_listed(parts)})" if len(parts) > 1 else ""
        fields.append(("to decode", f"{tokens['decoded']:,} tokens expected{split}"))
    if training["steps"]:
        rollouts, runs = training.get("rollouts"), training.get("trainings", 1)
        what = f"{rollouts:,} rollouts an epoch" if rollouts else f"{training['targets']:,} targets"
        steps = f"{training['steps']:,} steps" + (f", {runs} trainings" if runs > 1 else "")
        rehearsed = f", {training['rehearsed_tokens']:,} of them rehearsed" if training.get("rehearsed_tokens") else ""
        fields.append(("to train", f"{what}, {steps}, {training['tokens']:,} tokens{rehearsed}"))
    if editing:
        how = f"{editing['layers']} layers, {editing['steps']} steps each in {editing['prompts']} prompts"
        fields.append(("to edit", f"{editing['facts']:,} facts in {how}; {editing['text_tokens']:,} tokens of text are read"))
    peak, free = gigabytes(memory["peak"]), gigabytes(memory["available"])
    cached = f"; {gigabytes(disk['cache'])} in the cache" if disk.get("cache") else ""
    sizes = f"{gigabytes(disk['total'])} at the end, {gigabytes(disk['peak'])} at the peak; {gigabytes(disk['free'])} free"
    fields += [
        ("to ask", f"{asked['questions']:,} questions, about {asked['decoded']:,} tokens of replies by each model"),
        ("parameters", f"{parameters['total']:,}, of which {parameters['trained']:,} are trained"),
        ("memory", f"{peak} at the peak ({_listed(stages)}); {free} free, {memory['device']}"),
        ("disk", sizes + cached),
        *(("assumed", text) for text in found["assumptions"]),
    ]
    _fields(fields)
    for text in found["warnings"]:
        print(f"warning: {printable(text)}")
    print("nothing was done")


def corpus(found: Mapping[str, Any]) -> None:
    """Write what `look` found in a corpus."""
    options = _listed({name: value for name, value in found["options"].items() if name != "files"})
    print(printable(f"{found['name']} ({options})" if options else found["name"]))
    for name, split in found["splits"].items():
        print(f"\n{printable(name)}: {split['count']:,}")
        for fact in split["examples"]:
            _fields([("question", middle_clipped(fact["question"], 500)), ("answer", fact["answer"])], indent="  ")
    if len(found["pairs"]) > _MOST_PAIRS:
        print(f"\na graph of {len(found['domains']):,} domains; --json has the facts of each pair")
    elif found["pairs"]:
        print("\nfacts by domain:")
        _fields([(f"{pair['source']} to {pair['target']}", pair["facts"]) for pair in found["pairs"]], indent="  ")
    for note in found["notes"]:
        print(f"note: {printable(note)}")


def models(found: Sequence[Mapping[str, Any]]) -> None:
    """Write the models of `models`."""
    for model in found:
        print(model["name"])
        fields = [("parameters", f"{model['parameters']:,}"), ("licence", model["license"])]
        if model["installed"]:
            converted = model["folder"] or "not yet; the first use does it, in about 20 s"
            fields += [("where", model["where"]), ("size", f"{model['size'] / 10**6:,.0f} MB"), ("converted", converted)]
        else:
            fields.append(("not installed", f"run: {model['install']}"))
        _fields(fields, indent="  ")


def health(found: Mapping[str, Any]) -> None:
    """Write what `doctor` found; the problems come last, where they are seen."""
    torch, built_in, memory = found["torch"], found["built_in"], found["memory"]
    installed = "installed" if built_in["installed"] else "not installed"
    fields = [
        ("python", found["python"]),
        ("platform", found["platform"]),
        ("torch", f"{torch['version']}, {torch['threads']} threads" if torch else "cannot be imported"),
    ]
    for device in found["devices"]:
        dtypes = ", ".join(device["dtypes"]) or "does not compute"
        free = f"{gigabytes(device['available'])} free of {gigabytes(device['memory'])}"
        fields.append(("device", f"{device['name']}: {device['description']}; {dtypes}; {free}"))
    fields += [
        ("memory", f"{gigabytes(memory['available'])} free of {gigabytes(memory['total'])}"),
        ("cache", f"{found['cache']['folder']} ({gigabytes(found['cache']['free'])} free)"),
        ("built-in model", f"{built_in['name']}: {'converted' if built_in['folder'] else installed}"),
        ("packages", _listed({name: version or "MISSING" for name, version in found["packages"].items()})),
    ]
    for item in found["optional"]:
        missing = f"missing; for {item['use']}: {item['install']}"
        fields.append(("optional", f"{item['name']} {item['version'] or missing}"))
    _fields([*fields, ("network", "forbidden (HF_HUB_OFFLINE)" if found["offline"] else "allowed")])
    print()
    for problem in found["problems"]:
        print(f"problem: {printable(problem)}")
    if not found["problems"]:
        print("no problems found")


def gigabytes(count: int | None) -> str:
    """A number of bytes as '3.2 GB'."""
    return "unknown" if count is None else f"{count / 10**9:.1f} GB"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _fields(pairs: Sequence[tuple[str, Any]], indent: str = "") -> None:
    """Aligned 'name  value' lines; a name that repeats is written once."""
    width = max((len(printable(name)) for name, _ in pairs), default=0)
    before = None
    for name, value in pairs:
        print(f"{indent}{'' if name == before else printable(name):{width}}  {printable(str(value))}")
        before = name


_WINDOW = 600.0  # seconds over which the pace is taken; more where a step takes longer
_PAUSE = 10.0  # seconds between two plain lines


def watcher(file: TextIO | None = None) -> Watcher:
    """The watcher that fits stderr, or `file`: live on a terminal that can move its cursor, plain lines elsewhere."""
    file = file or sys.stderr
    live = Console(file=file)
    return LiveWatcher(live) if file.isatty() and live.is_terminal and not live.is_dumb_terminal else PlainWatcher(file)


class _PacedTask(Task):
    """The pace is rich's, of what was done in this process, so that a resumed run is not credited with what it found finished."""

    def __init__(self, bar: Progress, name: str, total: int) -> None:
        self.bar, self.name, self.total, self.done, self.at = bar, name, total, 0, bar.get_time()
        self.key = bar.add_task(name, total=total, state="")

    def advance(self, count: int = 1, note: str = "") -> None:
        self.reach(self.done + count, note)

    def reach(self, done: int, note: str = "") -> None:
        self.done = min(done, self.total)
        now = self.bar.get_time()
        self.bar.speed_estimate_period, self.at = max(_WINDOW, 3 * (now - self.at)), now  # or rich would forget the last mark
        self.bar.update(self.key, completed=self.done)
        (pace,) = self.bar.tasks
        seconds = pace.time_remaining if self.done < self.total else None
        left = "" if seconds is None else f"about {duration(seconds)} left"
        self.tell(", ".join(part for part in (note, rate_text(pace.speed), left) if part))

    def tell(self, state: str) -> None:
        self.bar.update(self.key, state=printable(state))


class PlainWatcher(Watcher):
    """A line at the start of a task, at most one every ten seconds, and one at its end."""

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.file = file
        self.clock = clock

    def say(self, text: str) -> None:
        print(printable(text), file=self.file, flush=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        from rich.progress import Progress

        started = self.clock()
        self.say(f"{name}: {total:,} to do")
        bar = Progress(disable=True, get_time=self.clock, speed_estimate_period=_WINDOW)
        task = _PlainTask(bar, name, total, self)
        yield task
        self.say(f"{name}: {task.done:,}/{total:,} done in {duration(self.clock() - started)}")


class _PlainTask(_PacedTask):
    def __init__(self, bar: Progress, name: str, total: int, watcher: PlainWatcher) -> None:
        super().__init__(bar, name, total)
        self.watcher, self.told = watcher, watcher.clock()

    def tell(self, state: str) -> None:
        now = self.watcher.clock()
        if now - self.told >= _PAUSE and self.done < self.total:
            self.told = now
            self.watcher.say(f"{self.name}: {self.done:,}/{self.total:,}" + (f", {state}" if state else ""))


class LiveWatcher(Watcher):
    """A bar that moves, with the pace and the expected time."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}", markup=False, style="dim"),
        )
        options: dict[str, Any] = {"refresh_per_second": 4, "redirect_stdout": False, "speed_estimate_period": _WINDOW}
        with Progress(*columns, console=self.console, **options) as bar:
            yield _PacedTask(bar, name, total)


def rate_text(rate: float | None) -> str:
    """'3.2/s', or '14/min' and '2/h' for what is slower; empty where nothing is known."""
    if not rate:
        return ""
    per, unit = (1, "s") if rate >= 1 else (60, "min") if rate >= 0.1 / 60 else (3600, "h")
    return f"{per * rate:.1f}/{unit}"


def duration(seconds: float) -> str:
    """A time in words: '0.4 s', '42 s', '2 min 5 s', '3 h 20 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
