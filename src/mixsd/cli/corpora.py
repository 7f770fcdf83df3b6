"""`mixsd corpus ...`: make a corpus's files, and look at them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mixsd.cli import show
from mixsd.cli.commands import Json, command
from mixsd.cli.progress import watcher

corpora = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    help="Make the paper's corpora: facts with in-domain tests, as JSONL files in a folder.",
    epilog="Then: mixsd inject FOLDER --output RUN. Or at once, with every default: mixsd inject kgfact:small --output RUN",
)

Output = Annotated[Path, typer.Option("--output", metavar="DIR", show_default=False, help="The folder to write.")]
Seed = Annotated[int, typer.Option("--seed", metavar="INTEGER", min=0, help="Seed of all that is drawn.")]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE", show_default=False, help="The data set as a local file. [default: from the hub]"),
]
Offline = Annotated[bool, typer.Option("--offline", metavar="", help="Forbid the network.")]


@command(into=corpora)
def kgfact(
    output: Output,
    size: Annotated[
        str, typer.Option("--size", help="small (100 facts), large (525), or DOMAINSxENTITIES such as 7x1000.")
    ] = "small",
    seed: Seed = 0,
    retrieval: Annotated[
        Literal["held-out", "trained"],
        typer.Option("--retrieval", help="Ask about entities that are never trained on, or about the trained facts."),
    ] = "held-out",
) -> None:
    """Facts about an invented world: a graph of entities that no model has read about."""
    _make(output, "kgfact", size, seed=seed, retrieval=retrieval)


@command(into=corpora)
def kgfunc(
    output: Output,
    train: Annotated[int, typer.Option("--train", metavar="N", help="Training instances, in all.")] = 1600,
    per_operation: Annotated[
        bool,
        typer.Option("--per-operation", metavar="", help="As many training instances for each operation (the paper's text)."),
    ] = False,
    test: Annotated[int, typer.Option("--test", metavar="N", help="Test instances, in all.")] = 175,
    seed: Seed = 0,
) -> None:
    """Arithmetic functions on digits: ten examples and a new input, with references that go step by step."""
    _make(output, "kgfunc", None, train=train, per_operation=per_operation, test=test, seed=seed)


@command(into=corpora)
def simpleqa(output: Output, data: Data = None, seed: Seed = 0, offline: Offline = False) -> None:
    """SimpleQA's 4,326 short questions about the world."""
    _make(output, "simpleqa", data, seed=seed, offline=offline)


@command(into=corpora)
def mquake(
    output: Output,
    data: Data = None,
    edits: Annotated[int, typer.Option("--edits", metavar="N", help="How many facts are changed.")] = 100,
    seed: Seed = 0,
    offline: Offline = False,
) -> None:
    """MQuAKE-CF: facts that the model may know, changed; with questions that need several of them."""
    _make(output, "mquake", data, edits=edits, seed=seed, offline=offline)


@command(into=corpora, name="show")
def show_corpus(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", show_default=False, help="A folder that mixsd corpus wrote, or kgfact:small.")
    ],
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", show_default=False, help="Write the graph as a picture.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a corpus: how many there are, an example of each split, and its graph."""
    from mixsd.pipeline.looking import look, write_picture

    found = look(folder)
    show.as_json(found) if as_json else show.corpus(found)
    if svg is not None:
        write_picture(folder, svg)
        print(f"picture: {svg}", file=sys.stderr if as_json else sys.stdout)


def _make(output: Path, name: str, argument: str | None, **options: Any) -> None:
    from mixsd.corpora.corpus import write
    from mixsd.corpora.making import corpus

    if options.get("offline"):
        from mixsd.pipeline.run import go_offline

        go_offline()
    made = corpus(name, argument, **options)
    with watcher().task("writing", 1 + len(made.splits)) as task:
        names: list[str] = []

        def on_record(split: str) -> None:
            if split not in names:
                task.reach(len(names), split)
                names.append(split)

        counts = write(made, output.expanduser(), on_record)
    for split, number in counts.items():
        print(f"{split + '.jsonl:':24} {number:>9,}")
    for note in made.notes:
        print(f"note: {note}")
    print(f"corpus: {output}; look at it with: mixsd corpus show {output}")
