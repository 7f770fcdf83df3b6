"""Runs that may stand in one table: read from their folders, and refused where they were not measured alike.

Alike means: the same base model, facts, prompts, template, decoding, scorer and precision. It is shown, not assumed: beside the
settings, every prompt that the base model was asked is compared by its hash, and where two base models said the same, the verdict
must be the same too. How a benchmark was asked (which questions, how long a reply, how many, which judge) stands beside its replies, and must
be equal. Seeds differ on purpose. With the seed
differ the framed paraphrases, the sampled reference replies of Eq. 2 and other sampled replies, so those are compared between runs
of one seed only.
"""

from __future__ import annotations

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
_ASKED = {
    "limit": "how many of the questions; None is all of them",
    "tokens": "the longest reply",
    "samples": "replies to each question",
    "temperature": "of sampled replies",
    "top_k": "of sampled replies",
    "chat_template": "whether prompts are rendered with it",
    "num_fewshot": "examples before a question",
    "scorer": "another version of the judge",
    "task": "the hash of what the task asks for",
    "data": "other questions",
}
_VERSIONS = ("mixsd", "torch", "transformers")

# What every row of replies must hold to be compared and scored; a row of Eq. 2 has its NLL and the number of its tokens too.
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("key", "split", "group", "prompt_hash", "reply"), str),
    **{"labels": list, "reply_ids": list, "outcome": str | None, "truncated": bool},
}

Asked = dict[tuple[str, str], dict[str, "_AskedRow"]]  # by suite and split, by key


@dataclass(frozen=True)
class _AskedRow:
    prompt: str
    reply: int
    outcome: str | None


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

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be equal for two runs to be compared, by name."""
        identity, environment = self.manifest.get("identity") or {}, self.report.environment
        return {
            "model_hash": identity.get("model_hash"),
            "facts_hash": identity.get("facts_hash"),
            **{name: self.settings[name] for name in ALIKE},
            "prompts": identity.get("prompts"),
            "device": str(environment.get("device", "unknown")).partition(":")[0],
            "dtype": environment.get("dtype"),
        }

    def rows(self, suite: str, model: str) -> Iterator[dict[str, Any]]:
        """The replies of one model in a suite.

        Raises:
            UserError: a row lacks what this version reads; another version may have written it.
        """
        file = replies_file(Run(self.folder), suite, model)
        for number, row in enumerate(read_jsonl(file), 1):
            if unlike := _unlike(row):
                raise UserError(
                    f"{file}: line {number}: {unlike}; another version of mixsd may have written it: delete this file, then "
                    f"`mixsd evaluate {self.folder} --suite {suite}` and `mixsd report {self.folder}` (the replies themselves are kept)"
                )
            yield row


def _unlike(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row, if anything is."""
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
    """Read a finished run.

    Raises:
        UserError: it is no run, not finished, or has no scores of the suite core.
    """
    run = Run(folder.expanduser())
    manifest = run.manifest()
    report = read_report(run.report_json)
    tuned = run.events("tuned")
    found = Measured(run.folder, manifest, report, str(tuned[0].get("hash")) if tuned else None)
    if report.alone:
        raise UserError(f"{folder}: one model evaluated alone; a comparison needs runs with a tuned model beside its base")
    for suite, values in report.asked.items():
        if suite in found.asked and comparable(values) != comparable(found.asked[suite]):
            raise UserError(
                f"{folder}: {suite} was asked anew after the report was written; `mixsd report {folder}` writes it anew"
            )
    if not any(suite == suites.CORE and model == "tuned" for suite, _, _, model, _ in found.scores):
        raise UserError(f"{folder}: has no scores of the suite core; `mixsd evaluate {folder} --suite core`, then `mixsd report`")
    return found


def check(runs: Sequence[Measured]) -> list[str]:
    """Refuse runs that were not measured alike; returns notes on what differs and may matter all the same.

    Raises:
        UserError: names the two runs, the differing field and both values.
    """
    notes = []
    first, of_seed = runs[0], {runs[0].seed: runs[0]}
    asked: dict[Path, Asked] = {}  # of the first run of each seed only: every other one is looked at once
    for run in runs:
        for name, value in run.conditions.items():
            if value != first.conditions[name]:
                _refuse(first, run, name, first.conditions[name], value)
        # Facts from a file and the same facts from a corpus are the same facts; two corpora bring different tests.
        corpora = [(item.manifest.get("identity") or {}).get("corpus") for item in (first, run)]
        if all(corpora) and corpora[0] != corpora[1]:
            _refuse(first, run, "corpus", *corpora)
        questions = [_checkpoint_questions(item) for item in (first, run)]
        if all(questions) and questions[0] != questions[1]:
            _refuse(first, run, "score_questions (asked at each checkpoint)", *questions)
        notes += _check_asked(first, run)
    for run in runs:
        told = _asked(run)
        twin = of_seed.setdefault(run.seed, run)
        if run is twin:
            asked[run.folder] = told
        for other in dict.fromkeys((first.folder, twin.folder)):
            if other != run.folder:
                known = next(item for item in runs if item.folder == other)
                notes += _check_rows(known, asked[other], run, told)
    return [*dict.fromkeys(notes), *_differing_machines(runs)]


def suites_of_all(runs: Sequence[Measured]) -> list[str]:
    """The suites that every run was asked, `core` first."""
    found = [{suite for suite, _, _, model, _ in run.scores if model == "tuned"} for run in runs]
    return in_order(set.intersection(*found))


def _check_asked(first: Measured, run: Measured) -> list[str]:
    """Refuse runs that were asked a suite in two ways, as far as both say how."""
    notes = []
    for suite in suites_of_all([first, run]):
        one, two = (_ways(item.asked.get(suite, {})) for item in (first, run))
        order = [*_ASKED, *(name for name in one if _kind(name) not in _ASKED)]
        for name in sorted(one.keys() & two.keys(), key=lambda name: (order.index(_kind(name)), name)):
            if one[name] != two[name]:
                _refuse(first, run, f"{name} of {suite}", one[name], two[name], why=_ASKED.get(_kind(name)))
        versions = sorted({str(item.asked.get(suite, {}).get("about", {}).get("lm_eval")) for item in (first, run)})
        if len(versions) > 1:
            notes.append(f"{suite} was scored by different versions of lm-eval: {', '.join(versions)}.")
    return notes


def _ways(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal of how a suite was asked, by name; of lm-eval the name ends in the task."""
    found = comparable(asked)
    if about := asked.get("about"):
        names = {"config_hash": "task", "data_hash": "data"}
        found |= {ours: about[theirs] for theirs, ours in names.items() if theirs in about}
        for task, values in (about.get("tasks") or {}).items():
            found[f"num_fewshot ({task})"] = values.get("num_fewshot")
    return found


def _kind(name: str) -> str:
    return name.partition(" (")[0]


def _asked(run: Measured) -> Asked:
    found: Asked = {}
    for suite in suites_of_all([run]):
        if suite == HELD_OUT:
            continue  # a mean over others; nothing is asked
        for row in run.rows(suite, "base"):
            reply = tuple(row["reply_ids"]) if row["split"] == suites.FORGETTING else row["reply"]
            found.setdefault((suite, row["split"]), {})[row["key"]] = _AskedRow(row["prompt_hash"], hash(reply), row["outcome"])
    return found


def _check_rows(first: Measured, before: Asked, run: Measured, after: Asked) -> list[str]:
    replied_otherwise = common = 0
    for (suite, split), known in before.items():
        told = after.get((suite, split))
        if told is None:
            continue  # asked in one run only: it is left out of the table
        what = f"prompts of {suite} {split}"
        if len(known) != len(told) or known.keys() != told.keys():
            odd = sorted(known.keys() ^ told.keys())[0]
            _refuse(first, run, f"{what} ({odd} was asked in one only)", f"{len(known)} asked", f"{len(told)} asked")
        if first.seed != run.seed and split in (suites.PARAPHRASE, "paraphrase"):
            continue
        drawn_alike = first.seed == run.seed or not first.asked.get(suite, {}).get("temperature")
        for key, old in known.items():
            new = told[key]
            if old.prompt != new.prompt:
                _refuse(first, run, f"{what} ({key})", old.prompt, new.prompt)
            if split == suites.FORGETTING:
                if first.seed == run.seed and old.reply != new.reply:
                    raise UserError(
                        f"{run.folder}: cannot be compared with {first.folder}: the reference replies of {key} differ, though both "
                        f"have seed {run.seed}; evaluate both with one cache of base replies, on one machine"
                    )
                continue
            common += drawn_alike
            if old.reply != new.reply:
                replied_otherwise += drawn_alike
            elif old.outcome != new.outcome and not suite.startswith(LM_EVAL):  # its rows do not hold all that it judges by
                _refuse(first, run, f"scorer (the same reply of the base model to {key})", old.outcome, new.outcome)
    if not replied_otherwise:
        return []
    return [
        f"The base model replied otherwise in {run.name} than in {first.name} to {replied_otherwise:,} of {common:,} equal prompts: "
        "near-ties fell otherwise on another machine or version."
    ]


def _checkpoint_questions(run: Measured) -> int | None:
    counts = [
        score.n
        for (suite, split, metric, _, checkpoint), score in run.scores.items()
        if (suite, split, metric) == (suites.CORE, suites.TRAINED, "accuracy") and checkpoint is not None
    ]
    return max(counts, default=None)


def _differing_machines(runs: Sequence[Measured]) -> list[str]:
    """Notes on machines and versions: wall time is the machine's as much as the method's."""
    notes = []
    machines = {tuple(str(run.report.environment.get(name)) for name in ("platform", "device", "threads")) for run in runs}
    if len(machines) > 1:
        notes.append("The runs were made on different machines or numbers of threads: their seconds do not compare.")
    for name in _VERSIONS:
        used = sorted({str((run.manifest.get("versions") or {}).get(name)) for run in runs})
        if len(used) > 1:
            notes.append(f"The runs were made with different versions of {name}: {', '.join(used)}.")
    return notes


def _refuse(first: Measured, run: Measured, field: str, old: Any, new: Any, *, why: str | None = None) -> None:
    why = why or _IDENTITY.get(field)
    what = f" ({why})" if why else ""
    raise UserError(
        f"{run.folder}: cannot be compared with {first.folder}: {field} differs{what}: {_short(new)} here, {_short(old)} there"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
