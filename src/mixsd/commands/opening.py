"""Opening a run: bad input is met before anything is written, a folder is claimed for one configuration, a run is taken up again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.asked import examination
from mixsd.facts.answers import get_verifier
from mixsd.facts.corpus import CORPORA, MANIFEST, Corpus, check_tests, facts_of, is_corpus, open_source, read, write_tests
from mixsd.facts.fact import to_json
from mixsd.facts.prompts import GUIDANCE
from mixsd.models import loading
from mixsd.plugins import is_function_name, load_function
from mixsd.progress import Watcher
from mixsd.run.engines import check_backend
from mixsd.run.folder import Run, go_offline
from mixsd.run.session import Session, reopen
from mixsd.settings import EXECUTION, Settings, build
from mixsd.storage import Shard, digest, file_digest, write_jsonl


def open_checked(settings: Settings, watcher: Watcher, *, alone: bool = False, without_facts: bool = False) -> Session:
    """Read the facts, find the model and the benchmarks' data, and check everything cheap; nothing is written to the run folder.

    Args:
        alone: only the base is evaluated; there is no tuned model.
        without_facts: there may be none, where a model is only evaluated.

    Raises `UserError`: any bad input.
    """
    if not settings.facts and not without_facts:
        raise UserError("no facts: name a file of facts (or 'demo' for the bundled ones)")
    session = _open(settings, watcher)
    session.alone = alone
    wanted = settings.dtype if settings.train_dtype == "auto" else settings.train_dtype
    if wanted == "bf16" and loading.is_slow_in_bf16(session.device):
        watcher.say("this CPU has no instructions for bf16: training with --train-dtype fp32 is faster here")
    examination(session).read_data()  # or a fault in the data would show after the training
    return session


def claim(session: Session) -> Session:
    """Claim the run folder for a checked session and put the facts in it."""
    run, settings, corpus = session.run, session.settings, session.corpus
    identity: dict[str, Any] = {"model_hash": session.base_hash, "facts_hash": digest([to_json(fact) for fact in session.facts])}
    if session.alone:
        identity["alone"] = True
    identity["duplicates"] = session.duplicates
    if corpus:
        identity["corpus"] = corpus.identity
    identity["prompts"] = session.renderer.fingerprint
    if settings.spec.edits and settings.edit_text:
        identity["edit_text"] = file_digest(Path(settings.edit_text).expanduser())
    run.claim(settings, identity)
    if not run.facts_file.is_file():
        write_jsonl(run.facts_file, map(to_json, session.facts))
    if corpus:
        if not is_corpus(run.splits):
            write_tests(corpus, run.splits)
        # From here on what the folder holds counts, as it will when the run is resumed.
        session.corpus = read(run.splits)
    return session


def resume(run: Run, watcher: Watcher, options: Mapping[str, Any]) -> Session:
    """Open an existing run folder with its own settings; `options` may change those of `EXECUTION`, and repeat the others."""
    settings = run.settings()
    changed = build(options, "options").model_dump(include=set(options))
    for name, value in changed.items():
        if name not in EXECUTION and value != getattr(settings, name):
            flag = name.replace("_", "-")
            raise UserError(f"{run.folder}: --{flag} was settled when the run was made; start another run to change it")
    settings = settings.model_copy(update=changed)
    _check_early(settings)
    return reopen(run, settings, watcher)


def open_targets(settings: Settings, watcher: Watcher, targets_hash: str) -> Session:
    """Open a run that trains on a file of targets: no facts, no mixing."""
    session = _open(settings, watcher)
    session.run.claim(session.settings, {"model_hash": session.base_hash, "targets_hash": targets_hash})
    return session


def _open(settings: Settings, watcher: Watcher) -> Session:
    opened = open_source(settings.facts, seed=settings.corpus_seed, offline=settings.offline) if settings.facts else None
    corpus = opened if isinstance(opened, Corpus) else None
    settings = fitted(settings, corpus).resolved
    if not settings.output:
        raise UserError("no run folder: say where the run goes with --output")
    _check_early(settings)
    found = None if opened is None else facts_of(opened, settings.facts)
    if corpus and settings.facts.partition(":")[0] not in CORPORA:
        check_tests(corpus)  # before the folder is made: what a user wrote may be wrong
    located = loading.locate(settings.model, revision=settings.revision, offline=settings.offline, say=watcher.say)
    run, base_hash = Run(Path(settings.output).expanduser()), loading.model_hash(located.folder)
    facts, duplicates = (found.facts, found.duplicates) if found else ([], 0)
    session = Session(run, settings, located, base_hash, facts, duplicates, watcher, corpus)
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
    own = {
        "verifier": settings.verifier or named,
        "max_new_tokens": settings.max_new_tokens or corpus.max_new_tokens.get(form),
        "guidance": settings.guidance or GUIDANCE[corpus.guidance, form],
    }
    return settings.model_copy(update=own)


def _check_early(settings: Settings) -> None:
    """What can be known to be wrong before anything is loaded."""
    if settings.offline:
        go_offline()
    Shard.of(settings.shard)
    get_verifier(settings.verifier or "contains")
    suites.check_suites(settings.suite)
    check_backend(settings.backend)
    loading.resolve_device(settings.device)
    spec = settings.spec
    if spec.distilled or settings.rehearse_loss == "kl":
        from mixsd.training.losses import Divergence

        Divergence.of(settings)
    if spec.check:
        load_function(spec.check, f"method {settings.method}")(settings)
    if spec.edits and settings.rehearse:
        raise UserError(f"--rehearse goes beside training, and --method {settings.method} does not train")
