"""What a user looks into: base and tuned model of a finished run, asked the same question; and what a corpus holds.

Both models answer in the same way, greedily, with the run's renderer. Reading needs no lock: a run folder can be asked while another
process works in it. Both models are in memory at once.
"""

from __future__ import annotations

import gc
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsd.commands import opening
from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Request, Sampling
from mixsd.errors import UserError
from mixsd.facts.corpus import TRAIN, Corpus, open_source
from mixsd.facts.fact import to_json
from mixsd.progress import Watcher
from mixsd.run.folder import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Conversation:
    """Both models of a run, ready for questions; each question stands alone. `execution`: settings such as `device`.

    Raises `UserError`: not a run folder, no model/ in it, the base model is gone or changed, or a setting that the run has fixed.
    """

    def __init__(self, run: str | Path, watcher: Watcher | None = None, **execution: Any) -> None:
        opened = Run(Path(run).expanduser())
        opened.manifest()
        if not opened.model.is_dir():
            raise UserError(f"{opened.folder}: has no model/ yet; run `mixsd train` on it first")
        self.session = opening.resume(opened, watcher or Watcher(), execution)
        self._models: dict[str, PreTrainedModel] = {
            "base": self.session.load_to_read(),
            "tuned": self.session.load_to_read(opened.model),
        }

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *raised: object) -> None:
        self._models.clear()
        gc.collect()

    def ask(self, question: str) -> dict[str, str]:
        """Return `question`, `base` and `tuned`: both replies as text, of at most the run's `max_new_tokens`.

        Raises `UserError`: a blank question, or one that leaves no room for a reply in the model's context.
        """
        question = question.strip()
        if not question:
            raise UserError("the question is empty")
        renderer, settings = self.session.renderer, self.session.settings
        prompt = renderer.naive(question)
        room = self.session.context - len(prompt)
        if room < 1:
            raise UserError(f"the question's prompt of {len(prompt)} tokens fills the model's context of {self.session.context}")
        request = Request("ask", prompt, min(settings.max_new_tokens or room, room))
        # Memory for this reply and not for a whole run's: it is made and zeroed anew for each question and model.
        budget = min(settings.token_budget, len(prompt) + request.max_new_tokens)
        replies = {"question": question}
        for name, model in self._models.items():
            (reply,) = decode_all(model, [request], Sampling(renderer.stops.ids), token_budget=budget)
            replies[name] = renderer.reply_text(reply.ids)
        return replies


def ask(run: str | Path, question: str, *, watcher: Watcher | None = None, **execution: Any) -> dict[str, str]:
    """Ask base and tuned model of a run one question; see `Conversation`."""
    with Conversation(run, watcher, **execution) as conversation:
        return conversation.ask(question)


def look(source: str) -> dict[str, Any]:
    """Look at a corpus, a folder or a name such as kgfact:small.

    Returns JSON values: name, options, notes; splits: for each its count and an example, as a fact; domains and, for each pair of
    them, the number of facts that join them (none where the facts are no graph).
    Raises `UserError`: it is no corpus.
    """
    corpus = open_source(source)
    if not isinstance(corpus, Corpus):
        next(iter(corpus), None)  # what is no file at all says so when it is read; that message is the better one
        raise UserError(f"{source}: is no corpus; name a folder that mixsd corpus wrote, or kgfact:small")
    splits = {}
    for name, facts in {TRAIN: corpus.facts, **corpus.splits}.items():
        stream = facts()
        first = [to_json(fact) for fact in islice(stream, 1)]
        splits[name] = {"count": len(first) + sum(1 for _ in stream), "examples": first}
    joined = [fact.meta.get("domains") for fact in corpus.facts() if fact.subject]
    pairs = Counter(tuple(names.split("-")) for names in joined if isinstance(names, str) and names.count("-") == 1)
    return {
        "name": corpus.name,
        "options": corpus.options,
        "notes": list(corpus.notes),
        "splits": splits,
        "domains": list(dict.fromkeys(chain.from_iterable(pairs))),
        "pairs": [{"source": source, "target": target, "facts": count} for (source, target), count in pairs.items()],
    }
