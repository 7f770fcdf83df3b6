"""Requests whose prompts differ much, and continuous decoding of a list of them."""

import random

from mixsd.decoding import continuous
from mixsd.decoding.requests import Request, Sampling
from mixsd.randomness import coins, uniforms

LENGTH = 12
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


def decode(model, wanted, sampling=STOPS, *, token_budget=8192, **options):
    stream = iter(wanted)
    return list(continuous.decode(model, lambda: next(stream, None), sampling, token_budget=token_budget, **options))
