"""What every stage of a run shares: settings, facts, the base model's folder, tokenizer and renderer, device and precision.

Weights are loaded by the stage that needs them, and let go of by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd import loading
from mixsd.answers import Verifier, get_verifier
from mixsd.corpora import CORPORA, Corpus, facts_of, open_source
from mixsd.corpora.corpus import MANIFEST, check_tests, is_corpus, read, write_tests
from mixsd.decoding.backends import check_backend
from mixsd.errors import UserError
from mixsd.evaluation import held_out, suites
from mixsd.evaluation.benchmarks.benchmark import is_benchmark
from mixsd.evaluation.questions import Material, Question
from mixsd.facts import Fact, to_json
from mixsd.pipeline.run import Run, go_offline
from mixsd.plugins import is_function_name
from mixsd.progress import Watcher
from mixsd.prompts import GUIDANCE, Renderer
from mixsd.settings import DISTILLED, EXECUTION, Settings, build
from mixsd.shards import Shard
from mixsd.storage import digest, file_digest, read_jsonl, write_jsonl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Raised whenever decoding or scoring comes to round otherwise (2: packed passes and oneDNN layers; 3: sizes rounded up), so that no
# cached reply of the base is compared with one of the tuned model that was made in another way.
_NUMERICS = 3


@dataclass
class Session:
    """One run being worked on.

    `settings` are resolved; `located` is the base model's folder and `base_hash` its hash; `duplicates` counts the facts
    that came twice. `facts` is empty for a run on a file of targets, or on none. `corpus` brings tests of its own. `alone`: there is no
    tuned model, only the base is evaluated.
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

    @cached_property
    def device(self) -> torch.device:
        """Where the models run."""
        return loading.resolve_device(self.settings.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The precision of mixing and evaluation."""
        return loading.resolve_dtype(self.settings.dtype, self.device)

    @property
    def precision(self) -> str:
        """What numbers depend on besides the weights: part of the cache keys."""
        return f"{self.device.type}/{str(self.dtype).removeprefix('torch.')}/{_NUMERICS}"

    @property
    def placement(self) -> dict[str, Any]:
        """Where and how a backend is to load the model; see `mixsd.decoding.backends`."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"device": self.device.type, "dtype": dtype, "trust_remote_code": self.settings.trust_remote_code}

    @property
    def part(self) -> list[Fact]:
        """The facts of the session's shard; all where it has none."""
        shard = Shard.of(self.settings.shard)
        return [fact for fact in self.facts if shard.holds(fact.id)] if shard else self.facts

    @cached_property
    def config(self) -> Any:
        """The base model's configuration."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                self.located.folder, local_files_only=True, trust_remote_code=self.settings.trust_remote_code
            )
        except (OSError, ValueError) as error:
            first = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(f"{self.located.folder}: the model's config.json cannot be read ({first})") from error

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return loading.load_tokenizer(self.located.folder, trust_remote_code=self.settings.trust_remote_code)

    @cached_property
    def renderer(self) -> Renderer:
        """The one renderer of the run."""
        from transformers import GenerationConfig

        try:
            generation = GenerationConfig.from_pretrained(self.located.folder, local_files_only=True)
        except OSError:
            generation = None
        settings = self.settings
        return Renderer(
            self.tokenizer,
            self.config,
            generation,
            system=settings.system,
            thinking=settings.thinking,
            answer_format=settings.answer_format,
            guidance=settings.guidance,
        )

    @cached_property
    def verifier(self) -> Verifier:
        """Who accepts replies."""
        return get_verifier(self.settings.verifier or "contains")

    @cached_property
    def chosen(self) -> held_out.Chosen:
        """What base and tuned are asked, and what a preset left out, which the watcher is told."""
        chosen = held_out.choose(self.settings, with_tests=self.corpus is not None)
        for name, why in chosen.skipped.items():
            self.watcher.say(f"{name} is not asked: {why}")
        return chosen

    @property
    def suites(self) -> list[str]:
        """The names of what base and tuned are asked."""
        return list(self.chosen.names)

    @cached_property
    def exams(self) -> dict[str, held_out.Exam]:
        """The benchmarks among the suites, with their data."""
        return {name: held_out.examine(name, self.settings) for name in self.suites if is_benchmark(name)}

    def questions(self, suite: str) -> list[Question]:
        """Everything that a suite asks, in a fixed order; nothing of what lm-eval asks itself."""
        if is_benchmark(suite):
            return self.exams[suite].questions(self.settings.seed)
        if held_out.is_asked_by_lm_eval(suite):
            return []
        return suites.questions(suite, self.material)

    def asked(self, suite: str) -> held_out.Asked:
        """How a suite is asked."""
        if held_out.is_asked_by_lm_eval(suite):
            return held_out.asked_by_lm_eval(suite, self.settings)
        return self.exams[suite].asked if is_benchmark(suite) else held_out.asked_plainly(suite)

    @property
    def material(self) -> Material:
        """What a suite may ask about."""
        splits, labels = (self.corpus.splits, self.corpus.labels) if self.corpus else ({}, ())
        return Material(self.facts, splits, labels, self.renderer, self.settings, self.verifier)

    @property
    def context(self) -> int:
        """The base model's context length in tokens."""
        return loading.context_length(self.config)

    def load_to_train(self) -> PreTrainedModel:
        """Load the base model onto the run's device, in fp32."""
        import torch

        return loading.load_model(self.located.folder, dtype=torch.float32, **self._where)

    def load_to_read(self, folder: Path | None = None) -> PreTrainedModel:
        """Load a model folder (the base's if none is named) in the run's precision, laid out for reading only."""
        return loading.load_to_read(folder or self.located.folder, dtype=self.dtype, **self._where)

    @property
    def _where(self) -> dict[str, Any]:
        return {"device": self.device, "trust_remote_code": self.settings.trust_remote_code}


def preview(settings: Settings, watcher: Watcher, *, without_facts: bool = False) -> Session:
    """Read the facts, find the model and the benchmarks' data, and check everything cheap; nothing is written.

    Args:
        without_facts: there may be none, where a model is only evaluated.

    Raises:
        UserError: any bad input.
    """
    if not settings.facts and not without_facts:
        raise UserError("no facts: name a file of facts (or 'demo' for the bundled ones)")
    session = _open(settings, watcher)
    _ = session.exams  # read now, or a fault in the data would show after the training
    return session


def start(session: Session) -> Session:
    """Claim the run folder for a previewed session and put the facts in it."""
    session.run.claim(session.settings, _identity(session))
    if not session.run.facts_file.is_file():
        write_jsonl(session.run.facts_file, map(to_json, session.facts))
    if session.corpus:
        if not is_corpus(session.run.splits):
            write_tests(session.corpus, session.run.splits)
        # From here on what the folder holds counts, as it will when the run is resumed.
        session.corpus = read(session.run.splits)
    return session


def resume(run: Run, watcher: Watcher, options: Mapping[str, Any]) -> Session:
    """Open an existing run folder with its own settings; `options` may change those of `EXECUTION` only."""
    manifest = run.manifest()
    changed = build(options, "options").model_dump(include=set(options))
    if settled := [name for name in options if name not in EXECUTION]:
        flag = settled[0].replace("_", "-")
        raise UserError(f"{run.folder}: --{flag} was settled when the run was made; start another run to change it")
    settings = run.settings().model_copy(update=changed)
    _check_early(settings)
    located = loading.locate(settings.model, offline=settings.offline, say=watcher.say)
    base_hash = loading.model_hash(located.folder)
    expected = manifest.get("identity", {}).get("model_hash")
    if expected != base_hash:
        raise UserError(
            f"{run.folder}: the base model {settings.model} is not the one this run was made with (its files changed)"
        )
    from mixsd.facts import fact_from_mapping

    facts = []
    if run.facts_file.is_file():
        facts = [fact_from_mapping(row, f"{run.facts_file}: line {n}") for n, row in enumerate(read_jsonl(run.facts_file), 1)]
    elif "facts_hash" in manifest.get("identity", {}):
        raise UserError(f"{run.facts_file}: the run's facts are gone; the command that made the run writes them anew")
    duplicates = manifest.get("identity", {}).get("duplicates", 0)
    corpus = read(run.splits) if is_corpus(run.splits) else None
    alone = bool(manifest.get("identity", {}).get("alone"))
    return Session(run, settings, located, base_hash, facts, duplicates, watcher, corpus, alone)


def _open(settings: Settings, watcher: Watcher) -> Session:
    opened = None
    if settings.facts:
        opened = open_source(settings.facts, seed=settings.corpus_seed, offline=settings.offline)
    corpus = opened if isinstance(opened, Corpus) else None
    settings = fitted(settings, corpus).resolved
    if not settings.output:
        raise UserError("no run folder: say where the run goes with --output")
    _check_early(settings)
    found = None if opened is None else facts_of(opened, settings.facts)
    if corpus and settings.facts.partition(":")[0] not in CORPORA:
        check_tests(corpus)  # before the folder is made: what a user wrote may be wrong
    located = loading.locate(settings.model, offline=settings.offline, say=watcher.say)
    session = Session(
        Run(Path(settings.output).expanduser()),
        settings,
        located,
        loading.model_hash(located.folder),
        found.facts if found else [],
        found.duplicates if found else 0,
        watcher,
        corpus,
    )
    for warning in session.renderer.stops.warnings:
        watcher.say(warning)
    return session


def fitted(settings: Settings, corpus: Corpus | None) -> Settings:
    """The settings with a corpus's own ways of asking and judging where none were given."""
    if corpus is None:
        return settings
    form = settings.answer_format
    named = corpus.verifiers.get(form)
    if named and not settings.verifier and is_function_name(named) and "files" in corpus.options:
        # A folder is data. Code runs where the user asks for it.
        raise UserError(
            f"{settings.facts}/{MANIFEST}: its verifier {named} is a function; if you trust it, pass --verifier {named}"
        )
    return settings.model_copy(
        update={
            "verifier": settings.verifier or named,
            "max_new_tokens": settings.max_new_tokens or corpus.max_new_tokens.get(form),
            "guidance": settings.guidance or GUIDANCE[corpus.guidance, form],
        }
    )


def open_targets(settings: Settings, watcher: Watcher, targets_hash: str) -> Session:
    """Open a run that trains on a file of targets: no facts, no mixing."""
    session = _open(settings, watcher)
    session.run.claim(session.settings, {"model_hash": session.base_hash, "targets_hash": targets_hash})
    return session


def _check_early(settings: Settings) -> None:
    """What can be known to be wrong before anything is loaded."""
    if settings.offline:
        go_offline()
    Shard.of(settings.shard)
    get_verifier(settings.verifier or "contains")
    suites.check_suites(settings.suite)
    check_backend(settings.backend)
    loading.resolve_device(settings.device)
    if settings.method in DISTILLED or settings.rehearse_loss == "kl":
        from mixsd.training.divergence import Divergence

        Divergence.of(settings)
    if settings.method == "memit":
        from mixsd.pipeline import editing

        editing.check(settings)
        if settings.rehearse:
            raise UserError("--rehearse goes beside training, and --method memit does not train")


def _identity(session: Session) -> dict[str, Any]:
    text = session.settings.edit_text
    return {
        "model_hash": session.base_hash,
        "facts_hash": digest([to_json(fact) for fact in session.facts]),
        **({"alone": True} if session.alone else {}),
        "duplicates": session.duplicates,
        **({"corpus": session.corpus.identity} if session.corpus else {}),
        "prompts": session.renderer.fingerprint,
        **({"edit_text": file_digest(Path(text).expanduser())} if session.settings.method == "memit" and text else {}),
    }
