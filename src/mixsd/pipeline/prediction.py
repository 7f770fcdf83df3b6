"""`plan`: what lambda and gate would make of a sample of the facts, before anything is trained.

Every configuration of the grid mixes the same few facts, in a run folder of its own under the plan's, so that a stopped plan goes on
where it was and a target can be looked at with `mixsd inspect`. What is told of each is measured on those targets: how many facts
are accepted, what that costs, how unlikely the base model finds them (Eq. 3, Tables 7 and 8), and where the first gradient step on
them would go (Eq. 8, with the gradient of Eq. 5 for the displacement). The references as they are, which SFT trains on, stand beside.

Facts that a configuration loses are not a random draw: they are those whose answers are long or strange. So likelihoods are also told
over the facts that every configuration accepted; one that loses more than half of them is out of the question and has no say in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd import statistics
from mixsd.errors import UserError
from mixsd.facts import Fact, to_json
from mixsd.mixing.targets import Target
from mixsd.pipeline import commands, first_step
from mixsd.pipeline import session as sessions
from mixsd.pipeline.run import Run
from mixsd.progress import Watcher
from mixsd.randomness import uniforms
from mixsd.settings import Settings, build
from mixsd.storage import cache_folder, digest, read_jsonl, write_json, write_jsonl

LAMBDAS = (0.0, 0.3, 0.5, 0.7)  # the paper's
GATES = (0.0, 0.1)
FACTS = 24
EXAMPLES = 64  # of the reference replies that the Fisher is estimated on
THRESHOLDS = (5.0, 8.0)  # nats; Tables 7 and 8
REFERENCE = "references (SFT)"


@dataclass(frozen=True)
class Cell:
    """One configuration of the grid."""

    lam: float
    gate: float

    @property
    def label(self) -> str:
        return f"lambda {self.lam:g}" + (f", gate {self.gate:g}" if self.gate else "")

    @property
    def name(self) -> str:
        return f"lam{self.lam:g}" + (f"-gate{self.gate:g}" if self.gate else "")


def predict(
    settings: Settings | None = None,
    *,
    lams: Sequence[float] = LAMBDAS,
    gates: Sequence[float] = GATES,
    sample: int = FACTS,
    examples: int = EXAMPLES,
    reference: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Mix a sample of the facts at each lambda and gate, and tell what would be trained on and at what cost.

    Args:
        settings: as for `inject`; or give them as keywords. `lam` and `gate` are those of the grid. `output` is the plan's folder, by
            default one in the cache that belongs to these facts, settings and model.
        lams, gates: the grid. At lambda 0 nothing is gated, so it stands there once.
        sample: how many facts, drawn by the seed; all where there are fewer.
        examples: reference replies for the Fisher of the base model; 0 leaves the alignment out.
        reference: "benchmarks" or "general", as for `analyze_fisher`.

    Returns:
        JSON values: `configurations` with `acceptance`, `cost`, `likelihood` (over all accepted and over the facts that are common) and
        `alignment` of each; `reference`: the same of the references; `facts`: how many of how many; `folder`.

    Raises:
        UserError: any bad input, or a configuration under which no fact at all is accepted is told as such, not raised.
    """
    settings = settings or build({"output": "plan", **options}, "plan")
    watcher = watcher or Watcher()
    cells = _grid(lams, gates)
    if settings.method != "mixsd":
        raise UserError(f"--method {settings.method}: a plan is about mixing; leave the method out")
    if sample < 1 or examples < 0:
        raise UserError("a plan needs at least one fact (--sample) and no negative number of examples (--examples)")
    session = sessions.preview(settings, watcher)
    facts = _sampled(session.facts, sample, session.settings.seed)
    folder = _folder(session, facts, options.get("output", ""))
    source = folder / "facts.jsonl"
    write_jsonl(source, map(to_json, facts))
    found: dict[Cell, dict[str, Any]] = {}
    for place, cell in enumerate(cells, 1):
        watcher.say(f"{cell.label} ({place} of {len(cells)})")
        found[cell] = _mixed(session.settings, cell, source, folder, watcher)
    common = _common(found.values(), len(facts))
    references = _references(found, len(facts))
    alignment = first_step.alignments(
        session,
        {cell.name: item["targets"] for cell, item in found.items()} | {REFERENCE: references},
        examples=examples,
        reference=reference,
    )
    result = {
        "facts": {"sampled": len(facts), "of": len(session.facts), "common": len(common)},
        "model": session.located.name,
        "folder": str(folder),
        "fisher": alignment.get("fisher"),
        "configurations": [
            {
                "label": cell.label,
                "lambda": cell.lam,
                "gate": cell.gate,
                "acceptance": statistics.proportion(len({t.id for t in item["targets"]}), len(facts)).to_json(),
                "cost": _cost(item, len(facts), len(session.facts)),
                "likelihood": {"all": _likelihood(item["targets"]), "common": _likelihood(item["targets"], common)},
                "alignment": alignment["values"].get(cell.name),
                "run": str(item["run"]),
            }
            for cell, item in found.items()
        ],
        "reference": {
            "label": REFERENCE,
            "likelihood": {"all": _likelihood(references), "common": _likelihood(references, common)},
            "alignment": alignment["values"].get(REFERENCE),
        },
    }
    write_json(folder / "plan.json", result)
    return result


def _grid(lams: Sequence[float], gates: Sequence[float]) -> list[Cell]:
    for name, values in (("--lam", lams), ("--gate", gates)):
        if not values or any(not 0 <= value <= 1 for value in values):
            raise UserError(f"{name}: expected numbers from 0 to 1, got {', '.join(f'{value:g}' for value in values) or 'none'}")
    cells = (Cell(float(lam), float(gate) if lam else 0.0) for lam in sorted(set(lams)) for gate in sorted(set(gates)))
    return list(dict.fromkeys(cells))


def _sampled(facts: list[Fact], count: int, seed: int) -> list[Fact]:
    """So many of the facts, whichever order they come in, in the order they came in."""
    drawn = sorted(facts, key=lambda fact: (uniforms(seed, "evaluation", f"plan {fact.id}", n=1)[0], fact.id))[:count]
    kept = {fact.id for fact in drawn}
    return [fact for fact in facts if fact.id in kept]


def _folder(session: sessions.Session, facts: list[Fact], output: str) -> Path:
    if output:
        folder = Path(output).expanduser()
        if Run(folder).exists():
            raise UserError(f"{folder}: is the folder of a run; choose another --output for the plan")
        return folder
    told = {name: value for name, value in session.settings.dump().items() if name not in ("output", "lam", "gate", "facts")}
    return cache_folder() / "plans" / digest([told, session.base_hash, [to_json(fact) for fact in facts]])[:16]


def _mixed(settings: Settings, cell: Cell, source: Path, folder: Path, watcher: Watcher) -> dict[str, Any]:
    """The accepted targets of one configuration, and what it took to make them."""
    run = Run(folder / cell.name)
    own = settings.model_copy(
        update={"facts": str(source), "lam": cell.lam, "gate": cell.gate, "output": str(run.folder), "on_fail": "drop"}
    )
    try:
        commands.mix(own, watcher=watcher)
    except UserError as error:
        if not str(error).startswith("none of "):  # a configuration that makes nothing is a finding
            raise
        return {"run": run.folder, "targets": [], "decoded": _decoded(run), "seconds": None, "references": None}
    targets = [target for row in read_jsonl(run.targets_file) if (target := Target.from_json(row)).accepted]
    seconds = [event["seconds"] for event in run.events("stage") if event["name"] == "mix"]
    return {
        "run": run.folder,
        "targets": targets,
        "decoded": sum(row["decoded_tokens"] for row in read_jsonl(run.targets_file)),
        "seconds": sum(seconds) if seconds else None,
        "references": run.references_file,
    }


def _decoded(run: Run) -> int:
    return sum(len(row["target_ids"]) for row in read_jsonl(run.attempts_file)) if run.attempts_file.is_file() else 0


def _common(found: Iterable[Mapping[str, Any]], asked: int) -> set[str]:
    """The facts accepted by every configuration that accepts at least half of what was asked for."""
    accepted = [{target.id for target in item["targets"]} for item in found]
    able = [ids for ids in accepted if 2 * len(ids) >= asked]
    return set.intersection(*able) if able else set()


def _references(found: Mapping[Cell, Mapping[str, Any]], asked: int) -> list[Target]:
    """The references as SFT would train on them; any mix has measured all of them."""
    file = next((item["references"] for item in found.values() if item["references"]), None)
    if file is None:
        raise UserError(f"none of {asked} facts was accepted under any lambda and gate; try another --guidance or --verifier")
    return [Target.from_json(row) for row in read_jsonl(file)]


def _cost(item: Mapping[str, Any], sampled: int, total: int) -> dict[str, Any]:
    """Tokens are counted; seconds are this machine's, with loading the model, and scale with the number of facts only roughly."""
    tokens, seconds = item["decoded"], item["seconds"]
    return {
        "decoded_tokens": tokens,
        "decoded_tokens_of_all_facts": round(tokens * total / sampled),
        "target_tokens": sum(len(target.target_ids) for target in item["targets"]),
        "seconds": seconds,
        "seconds_of_all_facts": None if seconds is None else round(seconds * total / sampled, 1),
    }


def _likelihood(targets: Iterable[Target], only: set[str] | None = None) -> dict[str, Any]:
    """Mean NLL and shares above each threshold, with intervals over facts; None where there is no target."""
    nll: dict[str, list[float]] = {}
    for target in targets:
        if only is None or target.id in only:
            nll.setdefault(target.id, []).extend(-value for value in target.base_logprobs)
    tokens = [len(values) for values in nll.values()]

    def over_facts(sums: list[float]) -> dict[str, Any] | None:
        return statistics.ratio_of_sums(sums, tokens).to_json() if sums else None

    return {
        "facts": len(nll),
        "tokens": sum(tokens),
        "mean_nll": over_facts([sum(values) for values in nll.values()]),
        **{
            f"share_above_{limit:g}": over_facts([float(sum(value > limit for value in values)) for values in nll.values()])
            for limit in THRESHOLDS
        },
    }
