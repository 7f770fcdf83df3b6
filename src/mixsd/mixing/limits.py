"""How long a reply to a fact may be, or why the fact cannot be asked. No prompt is ever cut to make room."""

from __future__ import annotations

from mixsd.facts import Fact
from mixsd.prompts import Renderer
from mixsd.settings import Settings

_ROOM = 16  # tokens that a reply may need beyond the reference's own length


def reply_limit(fact: Fact, renderer: Renderer, settings: Settings, context: int) -> tuple[int, str | None]:
    """The longest reply to a fact in tokens and None; or 0 and the reason why the fact is unusable."""
    if reason := renderer.unusable(fact):
        return 0, reason
    contextual = settings.mixes or settings.on_policy
    kind, ids = ("expert prompt", renderer.expert(fact)) if contextual else ("prompt", renderer.naive(fact.question))
    room = context - len(ids)
    if room < len(renderer.reference(fact)) + _ROOM:
        return 0, f"its {kind} of {len(ids)} tokens leaves no room for a reply in the context of {context}"
    return min(settings.max_new_tokens or room, room), None
