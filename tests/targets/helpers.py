"""Facts, a mixer over a tiny random model whose replies end early, and what of its targets must not vary."""

from dataclasses import replace

from mixsd.facts.answers import Verdict
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer
from mixsd.settings import Settings
from mixsd.storage import Journal
from mixsd.targets.stage import Mixer

FACTS = [Fact(f"What is {letter * n}?", letter) for letter, n in zip("abcdefgh", (1, 9, 3, 30, 5, 2, 14, 7), strict=True)]


def accept(rule):
    """A verifier by a rule on the reply's text."""
    return lambda reply, expected: Verdict("correct" if rule(reply, expected) else "wrong", None)


def some(reply, expected):
    """About one reply in three, by its text alone."""
    return sum(map(ord, reply)) % 3 == 0


def mixer(model, tokenizer, folder, rule=some, *, journal="attempts.jsonl", context=512, **options):
    settings = Settings(**{"max_new_tokens": 24, "retries": 4, "token_budget": 384, **options}).resolved
    renderer = Renderer(tokenizer, model.config, model.generation_config)
    # Nothing else ends a reply of a random model within reach: let a tenth of the vocabulary do it.
    stops = dict.fromkeys(range(0, len(tokenizer), 10), 2) | {2: 2}
    renderer.stops = replace(renderer.stops, ids=stops, end=2)
    return Mixer(lambda: model, renderer, settings, accept(rule), context, Journal(folder / journal))


def essence(targets):
    return [(t.id, t.sample, t.attempt, t.target_ids, t.sources, t.accepted, t.reason, t.decoded_tokens) for t in targets]
