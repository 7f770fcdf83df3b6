"""What every stage of a run shares; weights are loaded by the stage that needs them, and let go of by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mixsd.errors import UserError, first_line
from mixsd.facts.answers import Verifier, get_verifier
from mixsd.facts.corpus import Corpus, is_corpus, read
from mixsd.facts.fact import Fact, fact_from_mapping
from mixsd.facts.prompts import Renderer
from mixsd.models import loading
from mixsd.progress import Task, Watcher
from mixsd.run.folder import Run, go_offline, versions
from mixsd.settings import Settings
from mixsd.storage import Shard, read_jsonl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

_TICK = 30.0  # seconds of a stage that a kill may leave unlogged, besides the item in hand


@contextmanager
def timed(session: Session, stage: str) -> Iterator[None]:
    """Log the seconds of a stage, however it ends, and now and then as it goes: of a killed process too. The events add up."""
    before = session.watcher
    session.watcher = timer = _Timer(before, session.run, stage)
    try:
        yield
    finally:
        session.watcher = before
        timer.log()


class _Timer(Watcher):
    def __init__(self, inner: Watcher, run: Run, stage: str) -> None:
        self.inner, self.run, self.stage, self.since = inner, run, stage, time.perf_counter()

    def say(self, text: str) -> None:
        self.inner.say(text)

    def log(self, least: float = 0.0) -> None:
        now = time.perf_counter()
        if now - self.since >= least:
            self.run.log("stage", name=self.stage, seconds=round(now - self.since, 3))
            self.since = now

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        with self.inner.task(name, total) as task:
            yield _TimedTask(task, self)


class _TimedTask(Task):
    def __init__(self, inner: Task, timer: _Timer) -> None:
        self.inner, self.timer = inner, timer

    def advance(self, count: int = 1, note: str = "") -> None:
        self.inner.advance(count, note)
        self.timer.log(_TICK)

    def reach(self, done: int, note: str = "") -> None:
        self.inner.reach(done, note)
        self.timer.log(_TICK)


# Raised whenever decoding or scoring comes to round otherwise (2: packed passes and oneDNN layers; 3: sizes rounded up).
_NUMERICS = 3


@dataclass
class Session:
    """One run being worked on.

    `settings` are resolved; `located` is the base model's folder; `duplicates` counts the facts that came twice. `facts` is empty for
    a run on a file of targets, or on none. `corpus` brings tests of its own. `alone`: there is no tuned model, only the base.
    """

    run: Run
    settings: Settings
    located: loading.LocalModel
    base_hash: str
    facts: list[Fact]
    duplicates: int
    watcher: Watcher
    corpus: Corpus | None = None
    alone: bool = False
    _made: dict[Callable[..., Any], Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def device(self) -> torch.device:
        return loading.resolve_device(self.settings.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of mixing and evaluation."""
        return loading.resolve_dtype(self.settings.dtype, self.device)

    @property
    def precision(self) -> str:
        """Device and type of mixing and evaluation, in short."""
        return f"{self.device.type}/{self.placement['dtype']}/{_NUMERICS}"

    @property
    def numerics(self) -> str:
        """What numbers depend on besides the weights: part of the key of whatever is cached of a model."""
        found = versions()
        return f"{self.precision}/torch {found.get('torch')}/transformers {found.get('transformers')}"

    @property
    def placement(self) -> dict[str, Any]:
        """Where and how a backend is to load the model; see `mixsd.run.engines`."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"device": self.device.type, "dtype": dtype, "trust_remote_code": self.settings.trust_remote_code}

    @property
    def part(self) -> list[Fact]:
        """The facts of the session's shard; all where it has none."""
        shard = Shard.of(self.settings.shard)
        return [fact for fact in self.facts if shard.holds(fact.id)] if shard else self.facts

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        trusted = self.settings.trust_remote_code
        try:
            return AutoConfig.from_pretrained(self.located.folder, local_files_only=True, trust_remote_code=trusted)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.located.folder}: the model's config.json cannot be read ({first_line(error)})") from error

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return loading.load_tokenizer(self.located.folder, trust_remote_code=self.settings.trust_remote_code)

    @cached_property
    def renderer(self) -> Renderer:
        from transformers import GenerationConfig

        try:
            generation = GenerationConfig.from_pretrained(self.located.folder, local_files_only=True)
        except OSError:
            generation = None
        own = {name: getattr(self.settings, name) for name in ("system", "thinking", "answer_format", "guidance")}
        return Renderer(self.tokenizer, self.config, generation, **own)

    @cached_property
    def verifier(self) -> Verifier:
        return get_verifier(self.settings.verifier or "contains")

    def once(self, make: Callable[[Session], T]) -> T:
        """Return what a stage derives from the session; made at the first call, the same object afterwards."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    @property
    def context(self) -> int:
        """In tokens."""
        return loading.context_length(self.config)

    @property
    def _where(self) -> dict[str, Any]:
        return {"device": self.device, "trust_remote_code": self.settings.trust_remote_code}

    def load_to_train(self) -> PreTrainedModel:
        """Load the base model onto the run's device, in fp32."""
        import torch

        return loading.load_model(self.located.folder, dtype=torch.float32, **self._where)

    def load_to_read(self, folder: Path | None = None) -> PreTrainedModel:
        """Load a model folder (the base's if none is named) in the run's precision, laid out for reading only."""
        return loading.load_to_read(folder or self.located.folder, dtype=self.dtype, **self._where)

    def load_to_decode(self, folder: Path | None = None) -> PreTrainedModel:
        """As `load_to_read`, for the run's own stages: how the model is decoded is noted."""
        from mixsd.decoding import engine
        from mixsd.models import cpu

        model = self.load_to_read(folder)
        self.note_path("decoding", engine.path(model))
        self.note_path("linear layers", cpu.path(model))
        return model

    def note_path(self, work: str, path: str) -> None:
        """Record in run.yaml which way a kind of work is done, and say so once where that is not the usual one ("WAY: REASON")."""
        if self.run.exists() and self.run.note_path(work, path) and ": " in path:
            self.watcher.say(f"{work}: {path}")


def reopen(run: Run, settings: Settings, watcher: Watcher) -> Session:
    """Return the session of an existing run folder, on the facts and tests that lie in it; `settings` are the run's own.

    Raises `UserError`: the base model's files have changed, or the run's facts are gone.
    """
    if settings.offline:
        go_offline()
    identity = run.manifest().get("identity", {})
    located = loading.locate(settings.model, revision=settings.revision, offline=settings.offline, say=watcher.say)
    base_hash = loading.model_hash(located.folder)
    if identity.get("model_hash") != base_hash:
        raise UserError(
            f"{run.folder}: the base model {settings.model} is not the one this run was made with (its files changed)"
        )
    rows = read_jsonl(run.facts_file) if run.facts_file.is_file() else []
    if "facts_hash" in identity and not run.facts_file.is_file():
        raise UserError(f"{run.facts_file}: the run's facts are gone; the command that made the run writes them anew")
    facts = [fact_from_mapping(row, f"{run.facts_file}: line {number}") for number, row in enumerate(rows, 1)]
    corpus = read(run.splits) if is_corpus(run.splits) else None
    duplicates, alone = identity.get("duplicates", 0), identity.get("alone", False)
    return Session(run, settings, located, base_hash, facts, duplicates, watcher, corpus, alone)
