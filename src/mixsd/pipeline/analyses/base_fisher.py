"""The Fisher of a base model, estimated once and shared by every analysis and run: the model, its references and the estimate's cache."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd import loading
from mixsd.analysis.fisher import Fisher, Reference, diagonal_fisher, fisher_key, stored_fisher
from mixsd.pipeline.analyses.fisher_references import References, gather
from mixsd.pipeline.run import Run, go_offline
from mixsd.pipeline.session import Session
from mixsd.progress import Watcher
from mixsd.settings import build
from mixsd.storage import cache_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EXAMPLES = 64
_MMAP_THRESHOLD = -3  # what malloc.h calls M_MMAP_THRESHOLD
_LOGITS = 2**23  # that may exist at once: 32 MB in fp32, little beside the gradient of the head that they are made with


def base_fisher(
    model: str,
    *,
    reference: str | None = None,
    examples: int = EXAMPLES,
    data: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> tuple[Fisher, Session]:
    """The diagonal Fisher of a base model (Eq. 7), from the cache where it has been estimated.

    Args:
        model: the base model, as for --model.
        reference: 'benchmarks' or 'general'; None takes the benchmarks where their data is at hand.
        examples: how many reference examples.
        data: the folder of the benchmarks' data; else $MIXSD_DATA.
        options: settings of where and how the model is loaded: `device`, `dtype`, `offline`, `trust_remote_code`.

    Returns:
        the estimate, and the session that its model was opened in.

    Raises:
        UserError: any bad input.
    """
    watcher = watcher or Watcher()
    settings = build({"model": model, "data": data, **options}, "options").resolved
    if settings.offline:
        go_offline()
    located = loading.locate(settings.model, offline=settings.offline, say=watcher.say)
    session = Session(Run(Path(".")), settings, located, loading.model_hash(located.folder), [], 0, watcher)
    found = gather(session, examples, reference)
    parts = ", ".join(f"{name} {count}" for name, count in found.counts.items() if count)
    watcher.say(f"Fisher of {model} on {len(found.examples)} examples of {found.kind} ({found.why}): {parts}")
    key = fisher_key(found.examples, model_hash=session.base_hash, precision=session.precision)
    cache = cache_folder() / "fisher"
    return stored_fisher(cache, key) or _estimated(session, found, key, cache), session


def _estimated(session: Session, found: References, key: str, cache: Path) -> Fisher:
    record = {
        "model": session.settings.model,
        "model_hash": session.base_hash,
        "precision": session.precision,
        "reference": found.kind,
        "counts": found.counts,
        "passed_over": found.passed_over,
        "tokens": sum(len(example.target_ids) for example in found.examples),
        "keys": sorted(example.key for example in found.examples),
    }
    _blocks_apart()
    model = loading.load_model(
        session.located.folder,
        dtype=session.dtype,
        device=session.device,
        trust_remote_code=session.settings.trust_remote_code,
    )
    try:
        with session.watcher.task("Fisher", len(found.examples)) as task:
            nll = target_nll(model, min(found.examples, key=lambda example: len(example.prompt_ids) + len(example.target_ids)))
            return diagonal_fisher(model, found.examples, nll, key=key, cache=cache, record=record, on_done=task.advance)
    finally:
        del model
        gc.collect()


def _blocks_apart() -> None:
    """Have the C library take large blocks from the system one by one, and give each back at once.

    Else what every layer needed for a moment stays behind in pieces that do not fit together: with the built-in model 0.3 GB of it.
    """
    with suppress(OSError, AttributeError):  # glibc has it, others do not
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)


def target_nll(model: PreTrainedModel, probe: Reference) -> Callable[[Reference], torch.Tensor]:
    """A function that gives the summed NLL (nats) of an example's target, made so that its backward pass needs little memory.

    Activations are kept at the borders of the layers only, and logits exist at the supervised places, a chunk at a time.

    Args:
        probe: an example to try on what the model can do.
    """
    import torch

    from mixsd.training.batches import UNSUPERVISED, collate
    from mixsd.training.examples import Example
    from mixsd.training.loss import chunked_nll, head_is_separable
    from mixsd.training.states import padded_states

    chunk = max(1, _LOGITS // model.config.get_text_config().vocab_size)
    short = Example(probe.key, probe.prompt_ids[-16:], probe.target_ids[:16])
    dense = not head_is_separable(model, collate([short]).to(model.device))

    def nll(example: Reference) -> torch.Tensor:
        batch = collate([Example(example.key, example.prompt_ids, example.target_ids)]).to(model.device)
        labels = batch.labels[:, 1:]
        states = padded_states(model, batch, chunk=chunk, dense=dense)
        return chunked_nll(states.rows, states.head, labels[labels != UNSUPERVISED], states.chunk).sum()

    with torch.no_grad():
        expected = nll(probe)
        _recompute_layers(model)
        same = torch.equal(nll(probe), expected)
    if not same:
        model.eval()  # a layer that does something else when it trains: its activations are kept
    return nll


def _recompute_layers(model: PreTrainedModel) -> None:
    """Make the layers compute their activations again in the backward pass, and nothing but them behave as in training."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    try:
        # Newer transformers renamed it, and warn at the older name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    except ValueError:
        return  # the family cannot
    for module in model.modules():
        # Not `train()`, which would switch on the dropout inside them.
        module.training = isinstance(module, GradientCheckpointingLayer)
