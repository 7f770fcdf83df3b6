"""Requests whose prompts differ much, what the oracle decodes for them, and continuous decoding of a list of them."""

import random
from functools import cache

from mixsd.decoding import continuous, oracle
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.randomness import coins, uniforms
from tests.tiny import tiny_model

LENGTH = 9
STOPS = Sampling({2: 2, 5: 5, 11: 2})


def requests(lam: float, *, n: int = 7, plain: bool = False) -> list[Request]:
    """Requests whose prompts differ much in length, from 1 token to many times the sliding window."""
    draw = random.Random(3)
    made = []
    for i in range(n):
        key = f"fact-{i}"
        naive = [draw.randrange(3, 97) for _ in range(1 + 5 * i % 17)]
        expert = None if plain else naive + [draw.randrange(3, 97) for _ in range(2 + 7 * i % 23)]
        made.append(
            Request(
                key,
                naive,
                LENGTH - i % 3,
                expert,
                None if plain else coins(0, key, lam=lam, n=LENGTH),
                uniforms(0, "noise", key, n=LENGTH),
            )
        )
    return made


@cache
def model_of(architecture: str):
    """One model of an architecture, for tests that change nothing of it."""
    return tiny_model(architecture)


@cache
def truth(architecture: str, temperature: float, top_k: int | None, gate: float, lam: float) -> dict[str, Decoding]:
    """What the oracle decodes for `requests(lam)` with the stops of `STOPS`, by key: made once, for every path that is held to it."""
    sampling = Sampling(STOPS.stops, temperature, top_k, gate)
    return {request.key: oracle.decode(model_of(architecture), request, sampling) for request in requests(lam)}


def decode(model, wanted, sampling=STOPS, *, token_budget=8192, **options):
    stream = iter(wanted)
    return list(continuous.decode(model, lambda: next(stream, None), sampling, token_budget=token_budget, **options))
