"""The queue of attempts against the plain order: whatever ends first, each fact's attempts are those of one after another."""

import random

import numpy as np
import pytest

from mixsd.facts.fact import Fact
from mixsd.settings import Settings
from mixsd.targets.attempts import Case, Queue, next_attempt, record

LENGTH = 8


def outcome(case, attempt, chance):
    """A function of the coins alone, as a decoding is at T = 0."""
    length = 2 + int(np.packbits(attempt.coins)[0]) % (LENGTH - 1)
    accepted = random.Random(f"{case.key} {attempt.coins[:length].tolist()}").random() < chance
    return {"accepted": accepted, "target_ids": [7] * length, "sources": "n" * length}


def one_after_another(case, settings, chance):
    numbers = []
    while attempt := next_attempt(case, settings):
        record(case, attempt, outcome(case, attempt, chance), 0)
        numbers.append(attempt.number)
    return numbers


def cases(n):
    return [Case(Fact(f"question {i}?", "answer", id=f"{i}"), 0, LENGTH) for i in range(n)]


@pytest.mark.parametrize("on_fail", ["drop", "expert"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("lam", [0.02, 0.1, 0.3, 0.9])
@pytest.mark.parametrize(("facts", "slots"), [(1, 30), (4, 30), (24, 30), (24, 5)])
def test_any_order_of_ends_gives_each_attempt_once(facts, slots, lam, temperature, on_fail):
    for seed in range(6):
        chance = 0.0 if seed % 2 else 0.2
        settings = Settings(lam=lam, temperature=temperature, on_fail=on_fail, seed=seed).resolved
        draw = random.Random(seed)
        waiting, flying, numbers = Queue(cases(facts), settings), [], {}
        while True:
            # Several may end in one step, before anything new is let in.
            while (not flying or draw.random() < 0.5) and len(flying) < slots and (found := waiting.take()):
                assert found[0] not in {key for key, _, _ in flying}
                flying.append(found)
            if not flying:
                break
            key, case, attempt = flying.pop(draw.randrange(len(flying)))
            for ended, due, row in waiting.end(key, outcome(case, attempt, chance)):
                record(ended, due, row, 0)
                numbers.setdefault(ended.key, []).append(due.number)
        assert numbers == {case.key: one_after_another(case, settings, chance) for case in cases(facts)}
        assert not waiting.dropped
