"""Runs that may stand in one table: read from their folders, and refused where they were not measured alike.

Alike means: the same base model, facts, prompts, template, decoding, scorer and precision. It is shown, not assumed: beside the
settings, every prompt that the base model was asked is compared by its hash, and where two base models said the same, the verdict
must be the same too. How a benchmark was asked stands beside its replies and must be equal. With the seed differ the framed paraphrases,
the sampled reference replies of Eq. 2 and other sampled replies, so those are compared between runs of one seed only.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.asked import asked_suites, comparable, replies_file
from mixsd.evaluation.scores import HELD_OUT
from mixsd.evaluation.suites import LM_EVAL, in_order
from mixsd.reports.rows import Key
from mixsd.reports.schema import Report, Score, read_report
from mixsd.run.folder import Run
from mixsd.settings import Settings
from mixsd.storage import read_jsonl

# Settings that decide what is asked and how a reply is made and judged.
ALIKE = (
    *("answer_format", "system", "thinking", "verifier", "max_new_tokens"),
    *("paraphrases", "probe_questions", "forgetting_prompts", "forgetting_tokens"),
)
_IDENTITY = {
    "model_hash": "another base model",
    "facts_hash": "other facts",
    "prompts": "other prompts (template, system message or stop tokens)",
    "corpus": "other tests beside the facts",
}
# What a suite was asked with, by its name beside the replies; what says most comes first.
_ASKED = ("limit", "tokens", "samples", "temperature", "top_k", "chat_template", "num_fewshot", "scorer", "task", "data")
# What of a run's path is told, the last two where they were scored at the checkpoints.
_ALONG = {
    "memorization": (suites.TRAINED, "accuracy"),
    "forgetting": (suites.FORGETTING, "forgetting"),
    "validation": ("memorization/validation", "accuracy"),
    "probe": (suites.PROBE, "accuracy"),
}
_AT_CHECKPOINTS = "score_questions (asked at each checkpoint)"
_IN_WORDS = {
    "limit": "the number of questions; None is all",
    "task": "the hash of what is asked",
    "data": "the hash of the questions",
}
_VERSIONS = ("mixsd", "torch", "transformers")

# What every row of replies must hold to be compared and scored; a row of Eq. 2 has its NLL and the number of its tokens too.
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("key", "split", "group", "prompt_hash", "reply"), str),
    **{"labels": list, "reply_ids": list, "outcome": str | None, "truncated": bool},
}

# Prompt's hash, reply's hash and outcome, by suite and split and then by key.
Asked = dict[tuple[str, str], dict[str, tuple[str, int, str | None]]]


@dataclass(frozen=True)
class Measured:
    """A finished run as `compare` reads it. `evaluated` is the hash of the tuned model where the run only evaluates one."""

    folder: Path
    manifest: Mapping[str, Any]
    report: Report
    evaluated: str | None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return Run(self.folder).name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved settings; what there was no setting for when the run was made has its default."""
        return {**Settings().dump(), **self.manifest["settings"]}

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings["seed"])

    @cached_property
    def scores(self) -> dict[tuple[str, str, str, str, int | None], Score]:
        """The scores that have a value, by suite, split, metric, model and checkpoint."""
        return {score.key: score for score in self.report.scores if score.value is not None}

    @cached_property
    def asked(self) -> dict[str, dict[str, Any]]:
        """How each suite was asked."""
        return asked_suites(Run(self.folder))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return self.manifest.get("identity") or {}

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be equal for two runs to be compared, by name."""
        environment = self.report.environment
        return {
            **{name: self._identity.get(name) for name in ("model_hash", "facts_hash")},
            **{name: self.settings[name] for name in ALIKE},
            "prompts": self._identity.get("prompts"),
            "device": str(environment.get("device", "unknown")).partition(":")[0],
            "dtype": environment.get("dtype"),
        }

    @property
    def tests(self) -> dict[str, Any]:
        """What must be equal, by name, where both of two runs have it: facts from a file bring no tests beside them."""
        trained = (suites.CORE, suites.TRAINED, "accuracy")
        counts = [score.n for (*key, _, at), score in self.scores.items() if tuple(key) == trained and at is not None]
        return {"corpus": self._identity.get("corpus"), _AT_CHECKPOINTS: max(counts, default=None)}

    @cached_property
    def path(self) -> list[dict[str, Any]]:
        """Memorization and forgetting along the checkpoints; the final model stands at its own step, unless that one was scored."""
        training = self.report.training
        last = training.chosen.step if training.chosen else training.steps
        steps = sorted({at for *_, model, at in self.scores if at is not None and model == "tuned"})
        points = []
        for at in [*steps, *([None] if last is None or last not in steps else [])]:
            found = {name: self.scores.get((suites.CORE, *own, "tuned", at)) for name, own in _ALONG.items()}
            if found["memorization"] and found["forgetting"]:
                values = {name: score.value for name, score in found.items() if score}
                points.append({"step": last if at is None else at, **values, "scored": at is not None})
        return sorted(points, key=lambda point: math.inf if point["step"] is None else point["step"])

    def score(self, key: Key, model: str = "tuned") -> Score | None:
        """A score of the final model, or of the base."""
        return self.scores.get((*key, model, None))

    def rows(self, suite: str, model: str) -> Iterator[dict[str, Any]]:
        """The replies of one model in a suite; a row that lacks what this version reads is a `UserError`."""
        file = replies_file(Run(self.folder), suite, model)
        for number, row in enumerate(read_jsonl(file), 1):
            if fault := _fault_of(row):
                raise UserError(
                    f"{file}: line {number}: {fault}; another version of mixsd may have written it: delete this file, then "
                    f"`mixsd evaluate {self.folder} --suite {suite}` and `mixsd report {self.folder}` (the replies themselves are kept)"
                )
            yield row


def _fault_of(row: Mapping[str, Any]) -> str | None:
    expected = dict(_FIELDS)
    if row.get("split") == suites.FORGETTING:
        expected |= {"nll": int | float, "tokens": int}
    for name, kind in expected.items():
        if name not in row:
            return f"has no {name}"
        if not isinstance(row[name], kind):
            return f"{name} cannot be {_short(row[name])}"
    if "nll" in expected and not (math.isfinite(row["nll"]) and row["tokens"] > 0):
        return f"an NLL of {row['nll']} over {row['tokens']} tokens is not a measurement"
    return None


def read(folder: Path) -> Measured:
    """Read a run; one that is not finished, or has no scores of the suite core, is a `UserError`."""
    run = Run(folder.expanduser())
    manifest = run.manifest()
    report = read_report(run.report_json)
    tuned = run.events("tuned")
    found = Measured(run.folder, manifest, report, str(tuned[0].get("hash")) if tuned else None)
    if report.alone:
        raise UserError(f"{folder}: one model evaluated alone; a comparison needs runs with a tuned model beside its base")
    for suite, values in report.asked.items():
        if suite in found.asked and comparable(values) != comparable(found.asked[suite]):
            raise UserError(f"{folder}: {suite} was asked anew after the report was written; `mixsd report {folder}` first")
    if not any(suite == suites.CORE and model == "tuned" for suite, _, _, model, _ in found.scores):
        raise UserError(f"{folder}: has no scores of the suite core; `mixsd evaluate {folder} --suite core`, then `mixsd report`")
    return found


def check(runs: Sequence[Measured]) -> list[str]:
    """Refuse runs that were not measured alike, naming the differing field; returns notes on what differs and may matter all the same."""
    notes = []
    first = runs[0]
    for run in runs:
        known, own = (item.conditions | item.tests for item in (first, run))
        for name, old in known.items():
            new = own[name]
            if old != new and not (name in run.tests and None in (old, new)):
                _refuse(first, run, name, old, new)
        notes += _check_asked(first, run)
    asked: dict[int, tuple[Measured, Asked]] = {}  # of the first run of each seed only: every other one is looked at once
    for run in runs:
        told = _asked(run)
        asked.setdefault(run.seed, (run, told))
        for seed in dict.fromkeys((first.seed, run.seed)):
            if asked[seed][0] is not run:
                notes += _check_rows(*asked[seed], run, told)
    return [*dict.fromkeys(notes), *_differing_machines(runs)]


def suites_of_all(runs: Sequence[Measured]) -> list[str]:
    """The suites that every run was asked, `core` first."""
    found = [{suite for suite, _, _, model, _ in run.scores if model == "tuned"} for run in runs]
    return in_order(set.intersection(*found))


def _check_asked(first: Measured, run: Measured) -> list[str]:
    """Refuse runs that were asked a suite in two ways, as far as both say how."""

    def rank(name: str) -> tuple[int, str]:
        kind = name.partition(" (")[0]
        return (_ASKED.index(kind) if kind in _ASKED else len(_ASKED)), name

    notes = []
    for suite in suites_of_all([first, run]):
        one, two = (_ways(item.asked.get(suite, {})) for item in (first, run))
        for name in sorted(one.keys() & two.keys(), key=rank):
            if one[name] != two[name]:
                _refuse(first, run, f"{name} of {suite}", one[name], two[name])
        versions = sorted({str(item.asked.get(suite, {}).get("about", {}).get("lm_eval")) for item in (first, run)})
        if len(versions) > 1:
            notes.append(f"{suite} was scored by different versions of lm-eval: {', '.join(versions)}.")
    return notes


def _ways(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal of how a suite was asked, by name; of lm-eval the name ends in the task."""
    found = comparable(asked)
    if about := asked.get("about"):
        found |= {ours: about[theirs] for theirs, ours in (("config_hash", "task"), ("data_hash", "data")) if theirs in about}
        found |= {f"num_fewshot ({task})": values.get("num_fewshot") for task, values in (about.get("tasks") or {}).items()}
    return found


def _asked(run: Measured) -> Asked:
    found: Asked = {}
    for suite in suites_of_all([run]):
        if suite == HELD_OUT:
            continue  # a mean over others; nothing is asked
        for row in run.rows(suite, "base"):
            reply = tuple(row["reply_ids"]) if row["split"] == suites.FORGETTING else row["reply"]
            found.setdefault((suite, row["split"]), {})[row["key"]] = row["prompt_hash"], hash(reply), row["outcome"]
    return found


def _check_rows(first: Measured, before: Asked, run: Measured, after: Asked) -> list[str]:
    replied_otherwise = common = 0
    same_seed = first.seed == run.seed
    for (suite, split), known in before.items():
        told = after.get((suite, split))
        if told is None:
            continue  # asked in one run only: it is left out of the table
        what = f"prompts of {suite} {split}"
        if odd := sorted(known.keys() ^ told.keys()):
            _refuse(first, run, f"{what} ({odd[0]} was asked in one only)", f"{len(known)} asked", f"{len(told)} asked")
        if not same_seed and split in (suites.PARAPHRASE, "paraphrase"):
            continue
        drawn_alike = same_seed or not first.asked.get(suite, {}).get("temperature")
        for key, (prompt, reply, outcome) in known.items():
            own_prompt, own_reply, own_outcome = told[key]
            if prompt != own_prompt:
                _refuse(first, run, f"{what} ({key})", prompt, own_prompt)
            if split == suites.FORGETTING:
                if same_seed and reply != own_reply:
                    why = f"the reference replies of {key} differ; evaluate both with one cache of base replies, on one machine"
                    raise UserError(f"{run.folder}: cannot be compared with {first.folder}: {why}")
                continue
            common += drawn_alike
            if reply != own_reply:
                replied_otherwise += drawn_alike
            elif outcome != own_outcome and not suite.startswith(LM_EVAL):  # its rows do not hold all that it judges by
                _refuse(first, run, f"scorer (the same reply of the base model to {key})", outcome, own_outcome)
    note = (
        f"The base model replied otherwise in {run.name} than in {first.name} to {replied_otherwise:,} of {common:,} equal prompts: "
        "near-ties fell otherwise on another machine or version."
    )
    return [note] if replied_otherwise else []


def _differing_machines(runs: Sequence[Measured]) -> list[str]:
    """Notes on machines and versions: wall time is the machine's as much as the method's."""
    notes = []
    if len({tuple(str(run.report.environment.get(name)) for name in ("platform", "device", "threads")) for run in runs}) > 1:
        notes.append("The runs were made on different machines or numbers of threads: their seconds do not compare.")
    for name in _VERSIONS:
        used = sorted({str((run.manifest.get("versions") or {}).get(name)) for run in runs})
        if len(used) > 1:
            notes.append(f"The runs were made with different versions of {name}: {', '.join(used)}.")
    return notes


def _refuse(first: Measured, run: Measured, field: str, old: Any, new: Any) -> None:
    kind, of, _ = field.partition(" of ")
    why = (_IN_WORDS if of else _IDENTITY).get(kind)
    what = f"{field} differs" + (f" ({why})" if why else "")
    raise UserError(f"{run.folder}: cannot be compared with {first.folder}: {what}: {_short(new)} here, {_short(old)} there")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
