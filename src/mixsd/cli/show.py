"""Results on stdout: coloured on a terminal that has colours, plain elsewhere, never steered by what a model or a file says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mixsd.formats import MISSING, number, printable, token_text

_GB = 10**9
_MOST_DOMAINS = 20  # as rows and columns on a terminal
_HIGH_NLL = 8.0  # nats; the paper's threshold
_NAMES = {"e": "expert", "n": "naive", "g": "gated", "r": "reference", None: "prompt"}
# Readable on dark and light backgrounds; the prompt is dim, since it is not trained on.
_STYLES = {
    "e": "black on bright_green",
    "n": "black on bright_cyan",
    "g": "black on bright_yellow",
    "r": "black on bright_magenta",
}
_SURPRISING = "underline"


def console() -> Console:
    """A console on today's stdout; rich decides on colours by the terminal and NO_COLOR."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def as_json(value: Any) -> None:
    """Write JSON values."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def report(folder: Path) -> None:
    """Write the headline of a run's report, its requirements and warnings, and where everything is."""
    from mixsd.reports.schema import read_report
    from mixsd.reports.words import endings_table, headline, lines, warnings
    from mixsd.run.folder import Run

    run = Run(folder)
    found = read_report(run.report_json)
    console().print(headline(found).rich())
    if (endings := endings_table(found)) is not None:
        console().print(endings.brief().rich())
    for line in lines(found):
        print(line)
    for item in found.requirements:
        value = "not measured" if item.value is None else number(item.value, 3)
        print(f"required {printable(item.text)}: {value}, {'holds' if item.passed else 'MISSED'}")
    for text in warnings(found):
        print(f"warning: {printable(text)}")
    paths = [("model", run.model)] if run.model.is_dir() else []
    for name, path in [*paths, ("report", run.report_html)]:
        print(f"{name + ':':7} {path}")


def comparison(found: Mapping[str, Any]) -> None:
    """Write what `compare` found."""
    from mixsd.comparison import page

    for table in page.tables(found):
        console().print(table.rich())
    for line in page.lines(found):
        print(line)


def targets(folder: Path) -> None:
    """Write how many targets a run has, and where."""
    from mixsd.run.folder import Run
    from mixsd.storage import read_jsonl
    from mixsd.targets.target import Target, summarize

    file = Run(folder).targets_file
    statuses = summarize(map(Target.from_json, read_jsonl(file))).statuses
    counts = ", ".join(f"{statuses[status]:,} {status}" for status in ("accepted", "rejected", "unusable") if statuses[status])
    print(f"targets: {file} ({counts})")


def inspected(items: Sequence[Mapping[str, Any]]) -> None:
    """Write the items of `mixsd.inspect`: as coloured text on a terminal with colours, else one line per token."""
    out = console()
    coloured = out.color_system is not None and not out.no_color
    if coloured and items:
        out.print(_legend())
    for item in items:
        out.print()
        for line in _head(item):
            out.print(line, soft_wrap=True)
        if coloured:
            out.print(_text(item["tokens"]))
        else:
            _lines(out, item["tokens"])


def _head(item: Mapping[str, Any]) -> list[Text]:
    state = "accepted" if item["accepted"] else f"not accepted: {item['reason']}"
    facts = [f"lambda {item['lambda']:g}", f"sample {item['sample']}", f"attempt {item['attempt']}", printable(state, keep="")]
    if not item["canonical"]:
        facts.append("its text encodes to other ids")
    lines = [Text.assemble((printable(item["id"], keep=""), "bold"), "  ", ", ".join(facts))]
    if item["question"] is not None:
        lines.append(Text(printable(item["question"])))
    return lines


def _legend() -> Text:
    text = Text()
    for source, style in _STYLES.items():
        text.append(f" {_NAMES[source]} ", style).append(" ")
    text.append("prompt, not trained on", "dim").append("  ")
    return text.append(f"base NLL above {_HIGH_NLL:g} nats", _SURPRISING)


def _text(tokens: Sequence[Mapping[str, Any]]) -> Text:
    text = Text()
    for token in tokens:
        shown = f"[{token['id']}]" if token["text"] is None else token_text(token["text"])
        if not token["supervised"]:
            text.append(shown, "dim")
            continue
        style = _STYLES[token["source"]]
        if token["base_nll"] is not None and token["base_nll"] > _HIGH_NLL:
            style = f"{_SURPRISING} {style}"
        text.append(shown, style)
    return text


def _lines(out: Console, tokens: Sequence[Mapping[str, Any]]) -> None:
    """Id, mask, source, base NLL and text of each token, in columns that a script can split on blanks up to the text."""
    rows = [("id", "trained", "source", "nll", "text")]
    for token in tokens:
        rows.append(
            (
                str(token["id"]),
                "yes" if token["supervised"] else "no",
                _NAMES[token["source"]],
                MISSING if token["base_nll"] is None else number(token["base_nll"], 3),
                MISSING if token["text"] is None else repr(token["text"]),
            )
        )
    for key, trained, source, nll, text in rows:
        out.print(f"{key:>7}  {trained:7}  {source:9}  {nll:>7}  {text}", soft_wrap=True)


def replies(answer: Mapping[str, str]) -> None:
    """Write what base and tuned model reply: side by side where there is room, one below the other elsewhere."""
    from rich import box
    from rich.table import Table

    out = console()
    if not out.is_terminal or out.width < 60:
        for name in ("base", "tuned"):
            print(f"{name + ':':6} {printable(answer[name])}")
        return
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for name in ("base", "tuned"):
        made.add_column(name, ratio=1)
    made.add_row(*(Text(printable(answer[name])) for name in ("base", "tuned")))
    out.print(made)


def plan(found: Mapping[str, Any]) -> None:
    """Write a dry run: what an injection would take. What the run has nothing of is left out."""
    facts, tokens, asked, parameters = (found[name] for name in ("facts", "tokens", "evaluation", "parameters"))
    training, editing, memory, disk = (found[name] for name in ("training", "editing", "memory", "disk"))
    stages = {name: _gb(part["total"]) for name, part in memory.items() if isinstance(part, Mapping) and part["total"]}
    cached = f"; {_gb(disk['cache'])} in the cache" if disk.get("cache") else ""
    _fields(
        [
            ("facts", f"{facts['asked']:,} asked, {facts['usable']:,} usable, {facts['duplicates']:,} given twice"),
            *(
                (f"{name} tokens", f"{tokens[name]['mean']:.0f} on average, at most {tokens[name]['longest']:,}")
                for name in ("naive", "expert", "reference")
            ),
            ("to decode", _decoded(tokens)),
            *([("to train", _trained(training))] if training["steps"] else []),
            *([("to edit", _edited(editing))] if editing else []),
            ("to ask", f"{asked['questions']:,} questions, about {asked['decoded']:,} tokens of replies by each model"),
            ("parameters", f"{parameters['total']:,}, of which {parameters['trained']:,} are trained"),
            (
                "memory",
                f"{_gb(memory['peak'])} at the peak ({_parts(stages)}); {_gb(memory['available'])} free, {memory['device']}",
            ),
            ("disk", f"{_gb(disk['total'])} at the end, {_gb(disk['peak'])} at the peak; {_gb(disk['free'])} free{cached}"),
            ("time", "not estimated; a run says what is left of each stage as it goes"),
            *(("assumed", text) for text in found["assumptions"]),
        ]
    )
    for text in found["warnings"]:
        print(f"warning: {printable(text)}")
    print("nothing was done")


def _decoded(tokens: Mapping[str, Any]) -> str:
    if not tokens["decoded_at_most"]:
        return "nothing to train on"
    parts = {name: f"{count:,}" for name, count in (tokens.get("decoded_parts") or {}).items() if count}
    split = f" ({_parts(parts)})" if len(parts) > 1 else ""
    return f"{tokens['decoded']:,} tokens expected{split}, at most {tokens['decoded_at_most']:,}"


def _trained(training: Mapping[str, Any]) -> str:
    rollouts, runs = training.get("rollouts"), training.get("trainings", 1)
    what = f"{rollouts:,} rollouts an epoch" if rollouts else f"{training['targets']:,} targets"
    steps = f"{training['steps']:,} steps" + (f", {runs} trainings" if runs > 1 else "")
    rehearsed = f", {training['rehearsed_tokens']:,} of them rehearsed" if training.get("rehearsed_tokens") else ""
    return f"{what}, {steps}, {training['tokens']:,} tokens{rehearsed}"


def _edited(editing: Mapping[str, Any]) -> str:
    return (
        f"{editing['facts']:,} facts in {editing['layers']} layers, {editing['steps']} steps each in {editing['prompts']} prompts; "
        f"{editing['text_tokens']:,} tokens of text are read"
    )


def _parts(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def corpus(found: Mapping[str, Any]) -> None:
    """Write what `look` found in a corpus."""
    options = ", ".join(f"{name} {value}" for name, value in found["options"].items() if name != "files")
    print(printable(f"{found['name']} ({options})" if options else found["name"]))
    for name, split in found["splits"].items():
        print(f"\n{printable(name)}: {split['count']:,}")
        for fact in split["examples"]:
            _fields([("question", _middle_cut(fact["question"])), ("answer", fact["answer"])], indent="  ")
    if len(found["domains"]) > _MOST_DOMAINS:
        print(f"\na graph of {len(found['domains']):,} domains; --json has the facts of each pair")
    elif found["domains"]:
        print("\nfacts by domain, from the row to the column:")
        _matrix(found["domains"], {(pair["source"], pair["target"]): pair["facts"] for pair in found["pairs"]})
    for note in found["notes"]:
        print(f"note: {printable(note)}")


def _middle_cut(text: str) -> str:
    """A long text without its middle: what is asked stands at its end."""
    return text if len(text) <= 600 else f"{text[:250]} ... ({len(text) - 500:,} more characters) ... {text[-250:]}"


def _matrix(names: Sequence[str], values: Mapping[tuple[str, str], int]) -> None:
    width = max(map(len, names))
    print(" " * (width + 2) + "  ".join(f"{printable(name):>{width}}" for name in names))
    for row in names:
        print(f"  {printable(row):{width}}" + "  ".join(f"{values.get((row, column), '.'):>{width}}" for column in names))


def models(found: Sequence[Mapping[str, Any]]) -> None:
    """Write the models of `models`."""
    for model in found:
        print(model["name"])
        converted = model["folder"] or "not yet; the first use does it, in about 20 s"
        _fields(
            [
                ("parameters", f"{model['parameters']:,}"),
                ("licence", model["license"]),
                *(
                    [("where", model["where"]), ("size", f"{model['size'] / 10**6:,.0f} MB"), ("converted", converted)]
                    if model["installed"]
                    else [("not installed", f"run: {model['install']}")]
                ),
            ],
            indent="  ",
        )


def health(found: Mapping[str, Any]) -> None:
    """Write what `doctor` found; the problems come last, where they are seen."""
    torch, built_in = found["torch"], found["built_in"]
    state = (
        "not installed" if not built_in["installed"] else "converted" if built_in["folder"] else "installed, not yet converted"
    )
    packages = [f"{name} {version or 'MISSING'}" for name, version in found["packages"].items()]
    fields = [
        ("python", found["python"]),
        ("platform", found["platform"]),
        ("torch", f"{torch['version']}, {torch['threads']} threads" if torch else "cannot be imported"),
        *(("device", _device(device)) for device in found["devices"]),
        ("memory", _free_of(found["memory"]["available"], found["memory"]["total"])),
        ("cache", f"{found['cache']['folder']} ({_gb(found['cache']['free'])} free)"),
        ("built-in model", f"{built_in['name']}: {state}"),
        ("packages", ", ".join(packages)),
    ]
    for item in found["optional"]:
        missing = f"missing; for {item['use']}: {item['install']}"
        fields.append(("optional", f"{item['name']} {item['version'] or missing}"))
    fields.append(("network", "forbidden (HF_HUB_OFFLINE)" if found["offline"] else "allowed"))
    _fields(fields)
    print()
    for problem in found["problems"]:
        print(f"problem: {printable(problem)}")
    if not found["problems"]:
        print("no problems found")


def _device(device: Mapping[str, Any]) -> str:
    dtypes = ", ".join(device["dtypes"]) or "does not compute"
    return f"{device['name']}: {device['description']}; {dtypes}; {_free_of(device['available'], device['memory'])}"


def _free_of(available: int | None, total: int | None) -> str:
    return f"{_gb(available)} free of {_gb(total)}"


def _gb(count: int | None) -> str:
    return "unknown" if count is None else f"{count / _GB:.1f} GB"


def _fields(pairs: Iterable[tuple[str, Any]], indent: str = "") -> None:
    """Aligned 'name  value' lines; a name that repeats is written once."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    before = None
    for name, value in pairs:
        print(f"{indent}{'' if name == before else name:{width}}  {printable(str(value))}")
        before = name
