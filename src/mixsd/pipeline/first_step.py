"""Where the first gradient step on some targets would go: the Fisher alignment ratio (Eq. 8) of the loss's own gradient (Eq. 5).

The optimizer's first update is another thing (Adam divides each gradient by its own size, so its first step has the same length
everywhere and an alignment near 1 for any target); the gradient is what the targets ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixsd.mixing.targets import Target
from mixsd.pipeline.session import Session

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from mixsd.analysis.fisher import Fisher


def alignments(
    session: Session, groups: Mapping[str, Sequence[Target]], *, examples: int, reference: str | None = None
) -> dict[str, Any]:
    """The alignment ratio of the gradient of each group's mean NLL per token at the base weights.

    Args:
        groups: accepted targets by name.
        examples: how many reference replies the base's Fisher is estimated on; 0 for no alignment at all.
        reference: see `base_fisher`.

    Returns:
        `values` by group, None for one without targets; `fisher`: what the Fisher was measured on, None without examples.
    """
    if not examples:
        return {"fisher": None, "values": {}}
    from mixsd.pipeline.analyses.base_fisher import base_fisher

    settings = session.settings
    fisher, _ = base_fisher(
        settings.model,
        reference=reference,
        examples=examples,
        data=settings.data,
        watcher=session.watcher,
        device=settings.device,
        dtype=settings.dtype,
        offline=settings.offline,
        trust_remote_code=settings.trust_remote_code,
    )
    told = {name: fisher.record.get(name) for name in ("key", "reference", "counts", "examples")}
    model = session.load_to_train()
    with session.watcher.task("gradients", sum(map(len, groups.values()))) as task:
        values = {}
        for name, targets in groups.items():
            values[name] = _alignment(model, targets, fisher, task.advance) if targets else None
    return {"fisher": told, "values": values}


def _alignment(model: PreTrainedModel, targets: Sequence[Target], fisher: Fisher, on_done: Any) -> float | None:
    from mixsd.analysis.displacement import alignment_of
    from mixsd.analysis.fisher import Reference
    from mixsd.pipeline.analyses.base_fisher import target_nll

    examples = [
        Reference(f"{target.id} {target.sample}", tuple(target.prompt_ids), tuple(target.target_ids)) for target in targets
    ]
    nll = target_nll(model, min(examples, key=lambda example: len(example.prompt_ids) + len(example.target_ids)))
    tokens = sum(len(example.target_ids) for example in examples)
    model.zero_grad(set_to_none=True)
    for example in examples:
        (nll(example) / tokens).backward()  # type: ignore[no-untyped-call]
        on_done(1)
    found = alignment_of(fisher, _gradients(model)).alignment
    model.zero_grad(set_to_none=True)
    return found


def _gradients(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad
