"""Where the thinking of a reply ends: only what stands behind it is the answer."""

from __future__ import annotations

import re

_MARK = re.compile(r"<(?P<end>/?)think(?:ing)?\s*>", re.IGNORECASE)


def without_thinking(text: str) -> str | None:
    """What stands behind the last think block, or all of a reply that has none.

    - The last mark decides. `</think>` ends all thinking before it, whether or how often it was opened: the prompt may have
      opened the block, and a model that thinks about thinking does not nest it.
    - `<think>` that no `</think>` follows: None; the reply was cut off, or never came to its answer.
    - What stands before or between blocks is not part of the answer: a later block took it up again.
    """
    last = None
    for last in _MARK.finditer(text):  # noqa: B007
        pass
    if last is None:
        return text
    return text[last.end() :] if last["end"] else None
