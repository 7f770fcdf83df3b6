"""What training consumes: a prompt and a target as token ids, checked before the first step.

Nothing is ever truncated: a target cut at the context's end would teach the model to stop in the middle. An example that
does not fit stops the run and is named, or is dropped and named when the user asked for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mixsd.errors import UserError

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Example:
    """One target to train on.

    `key` is unique among the examples of a run and decides their order. `prompt_ids` is the rendered naive prompt, never
    supervised; `target_ids` are the ids that were decoded, stop token included, all of them supervised.
    """

    key: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Prompt and target together, in tokens."""
        return len(self.prompt_ids) + len(self.target_ids)


def usable(
    examples: Iterable[Example], max_length: int | None, *, drop_overlong: bool = False
) -> tuple[list[Example], tuple[str, ...]]:
    """Return the examples to train on and the keys of the dropped ones, both in the given order.

    `max_length` is the context in tokens (None: no limit). Raises `UserError` where there is nothing to train on, a key
    occurs twice, an example has no supervised token (an empty target, or an empty prompt: nothing predicts the target's
    first token), or one is longer than the context and `drop_overlong` is off.
    """
    examples = list(examples)
    if not examples:
        raise UserError("there is no target to train on")
    if twice := [key for key, count in Counter(example.key for example in examples).items() if count > 1]:
        raise UserError(f"every example needs a key of its own; these occur twice: {_names(twice)}")
    empty = [example.key for example in examples if not example.prompt_ids or not example.target_ids]
    if empty:
        raise UserError(f"no supervised token in {_names(empty)}: the prompt or the target is empty")
    overlong = tuple(example.key for example in examples if max_length is not None and len(example) > max_length)
    if overlong and not drop_overlong:
        raise UserError(
            f"prompt and target are longer than the model's context of {max_length} tokens in {_names(overlong)}; "
            "shorten them or pass --drop-overlong"
        )
    dropped = set(overlong)
    kept = [example for example in examples if example.key not in dropped]
    if not kept:
        raise UserError(f"--drop-overlong leaves nothing to train on: all are longer than the context of {max_length} tokens")
    return kept, overlong


def _names(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{len(keys)} example{'s' if len(keys) > 1 else ''} ({', '.join(keys[:_NAMED])}{more})"
