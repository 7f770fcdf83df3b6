"""What the NLL analysis reads: runs and files of targets, with the references that belong to them, line by line.

What was measured while mixing is used as it stands. What was not is measured by the source's own base model, and with `check`
everything is measured once more and must agree. Ids are what is scored; no text is encoded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd.decoding.requests import REFERENCE
from mixsd.errors import UserError
from mixsd.models import loading
from mixsd.progress import Task, Watcher
from mixsd.run.folder import Run
from mixsd.settings import Settings
from mixsd.targets.reading import read_targets
from mixsd.targets.target import REFERENCE_LABEL, Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNNAMED = "a file of targets does not say which base model it is of; name it with --model"
_AT_ONCE = 64  # targets that are scored together

Line = tuple[str, Target]  # where it stands, for messages


@dataclass(frozen=True)
class TargetSource:
    """A run, or a file of targets. `reference`: its targets are references as they are. `run` is None for a file."""

    path: Path
    file: Path
    label: str
    reference: bool
    run: Run | None = None
    lam: float | None = None
    gate: float | None = None

    @property
    def name(self) -> str:
        """How the user may know it: the run's name, or the file's."""
        return self.run.name if self.run else self.path.name


def open_sources(paths: Sequence[Path]) -> list[TargetSource]:
    """What each path is, with a label of its own; nothing there, no targets, or different base models are a `UserError`."""
    runs = {path: Run(path) for path in paths if path.is_dir()}
    hashes = [(run.manifest().get("identity") or {}).get("model_hash") for run in runs.values()]
    for run, own in zip(runs.values(), hashes, strict=True):
        if own != hashes[0]:
            first = next(iter(runs))
            raise UserError(
                f"{run.folder}: was made with another base model than {first} (model_hash {own!r}, there {hashes[0]!r})"
            )
    found = [_of_run(runs[path], path) if path in runs else _of_file(path) for path in paths]
    # Equal labels are told apart by the sources' names, and where those are equal too by their paths.
    for spelling in (lambda source: source.name, lambda source: str(source.path)):
        counts = Counter(source.label for source in found if not source.reference)
        found = [
            replace(source, label=f"{source.label} ({spelling(source)})") if counts[source.label] > 1 else source
            for source in found
        ]
    return found


def lines(file: Path) -> Iterator[Line]:
    """The targets of a file; a line whose log-probabilities cannot be such is a `UserError` with its number."""
    seen: set[tuple[str, int]] = set()
    for number, target in enumerate(read_targets(file), 1):
        where = f"{file}: line {number}"
        if not all(math.isfinite(value) and value <= 1e-3 for value in target.base_logprobs):
            raise UserError(f"{where}: base_logprobs: a log-probability is a finite number and not above 0")
        if target.accepted and not (target.prompt_ids and target.target_ids):
            raise UserError(f"{where}: an accepted target needs prompt_ids and target_ids")
        if (target.id, target.sample) in seen:
            raise UserError(f'{where}: fact "{target.id}", sample {target.sample}, stands there twice')
        seen.add((target.id, target.sample))
        yield where, target


class BaseMeasurer:
    """The base model: measures what nobody has measured, and with `check` what was measured, once more.

    `checked` tokens were compared, with the `largest` difference in nats; `precisions` are dtype and device of the models that
    measured, with the difference that is allowed there.
    """

    def __init__(self, model: str | None, options: Mapping[str, Any], watcher: Watcher, *, check: bool) -> None:
        self.check = check
        self.checked, self.largest = 0, 0.0
        self.precisions: dict[str, float] = {}
        self._named, self._options, self._watcher = model, options, watcher
        self._loaded: tuple[tuple[Any, ...], PreTrainedModel] | None = None
        self._precision = ""

    def complete(self, file: Path, run: Run | None, name: str) -> Iterator[Line]:
        """The lines of a file with log-probabilities for every accepted target; those that have them are compared, if asked for."""
        total = sum(self._is_wanted(target) for _, target in lines(file))
        rows = lines(file)
        with self._watcher.task(f"measuring {name}", total) if total else nullcontext(Task()) as task:
            while window := list(islice(rows, _AT_ONCE)):
                self._measure(window, run, task)
                yield from window

    def _is_wanted(self, target: Target) -> bool:
        return target.accepted and (self.check or not target.base_logprobs)

    def _measure(self, window: list[Line], run: Run | None, task: Task) -> None:
        """Put measured log-probabilities in the place of missing ones, and compare the others."""
        from mixsd.decoding.engine import score

        wanted = {place: target for place, (_, target) in enumerate(window) if self._is_wanted(target)}
        if not wanted:
            return
        model = self._model(run)
        size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[arg-type, index]
        for place, target in wanted.items():
            if max(*target.prompt_ids, *target.target_ids) >= size:
                raise UserError(f"{window[place][0]}: holds a token id that the base model does not have ({size:,} are known)")
        pairs = [(target.prompt_ids, target.target_ids) for target in wanted.values()]
        for (place, target), found in zip(wanted.items(), score(model, pairs, on_done=task.advance), strict=True):
            where = window[place][0]
            if target.base_logprobs:
                self._compare(where, target, found)
            else:
                window[place] = where, replace(target, base_logprobs=found)

    def _compare(self, where: str, target: Target, found: list[float]) -> None:
        allowed = self.precisions[self._precision]
        apart = [abs(stored - measured) for stored, measured in zip(target.base_logprobs, found, strict=True)]
        for token, difference in enumerate(apart):
            if not difference <= allowed:  # NaN included
                raise UserError(
                    f'{where}: target of fact "{target.id}": token {token} is stored with a base NLL of '
                    f"{-target.base_logprobs[token]:.4f}, measured it is {-found[token]:.4f} nats ({self._precision}; tolerance "
                    f"{allowed:g}); the file was changed, or made with another model or in another precision"
                )
        self.checked += len(apart)
        self.largest = max(self.largest, *apart)

    def _model(self, run: Run | None) -> PreTrainedModel:
        """The base model of a run in the run's precision; of a file, the one that was named."""
        if run is None and self._named is None:
            raise UserError(UNNAMED)
        settings = run.settings() if run else Settings(model=self._named or "")
        settings = settings.model_copy(update={name: value for name, value in self._options.items() if value is not None})
        located = loading.locate(settings.model, revision=settings.revision, offline=settings.offline, say=self._watcher.say)
        if run and (run.manifest().get("identity") or {}).get("model_hash") != loading.model_hash(located.folder):
            raise UserError(f"{run.folder}: the base model {settings.model} is not the one this run was made with")
        device = loading.resolve_device(settings.device)
        dtype = loading.resolve_dtype(settings.dtype, device)
        key = (located.folder, device, dtype)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # let go of one before the next is loaded
            trusted = settings.trust_remote_code
            loaded = loading.load_to_read(located.folder, dtype=dtype, device=device, trust_remote_code=trusted)
            self._loaded = key, loaded
        self._precision = f"{str(dtype).removeprefix('torch.')} on {device.type}"
        self.precisions[self._precision] = _tolerance(device.type, str(dtype))
        return self._loaded[1]


def _tolerance(device: str, dtype: str) -> float:
    """By how many nats two measurements of one token may differ: 0.001 in fp32 on CPU, more where sums are rounded otherwise.

    In bf16 the same 620 tokens of the built-in model, scored in one batch and one target at a time, came apart by up to 0.37.
    """
    if dtype != "torch.float32":
        return 0.5
    return 1e-3 if device == "cpu" else 1e-2


def _of_run(run: Run, path: Path) -> TargetSource:
    settings = run.settings()
    if settings.spec.edits:
        raise UserError(f"{path}: method {settings.method} edits at prompts of its own; the NLL there is another measure")
    if "targets_hash" in (run.manifest().get("identity") or {}):
        found = _of_file(run.targets_file)  # made elsewhere: the settings say nothing about how
        return replace(found, path=path, run=run, label=found.label.replace(run.targets_file.stem, run.name, 1))
    if not settings.spec.needs_targets:
        raise UserError(f"{path}: method {settings.method} has no targets: it answers anew at each step")
    if not run.targets_file.is_file():
        raise UserError(f"{path}: has no targets.jsonl; run `mixsd mix` on it first")
    if not settings.spec.mixes:
        return TargetSource(path, run.targets_file, REFERENCE_LABEL, True, run)
    return TargetSource(path, run.targets_file, settings.label, False, run, settings.lam, settings.gate)


def _of_file(path: Path) -> TargetSource:
    """A file of targets: references where every token is one, else named after itself and the lambda that all its targets have."""
    if not path.is_file():
        raise UserError(f"{path}: no such run folder or file of targets")
    kinds, lams = set(), set()
    for _, target in lines(path):
        kinds |= set(target.sources)
        if target.accepted:
            lams.add(target.lam)
    if not lams:
        raise UserError(f"{path}: holds no accepted target")
    if kinds == {REFERENCE}:
        return TargetSource(path, path, REFERENCE_LABEL, True)
    lam = lams.pop() if len(lams) == 1 else None
    return TargetSource(path, path, path.stem if lam is None else f"{path.stem}, lambda {lam:g}", False, lam=lam)
