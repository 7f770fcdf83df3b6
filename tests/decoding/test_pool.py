"""How long the pool's slots are: as the texts in flight need it, longer and shorter, and within the budget."""

import numpy as np
import torch

from mixsd.decoding import continuous, oracle
from mixsd.decoding.packed import Pool
from mixsd.decoding.requests import Request, Sampling
from tests.tiny import tiny_model


def decode(model, wanted, **options):
    stream = iter(wanted)
    return list(continuous.decode(model, lambda: next(stream, None), Sampling({}), **options))


def watch(monkeypatch):
    """The (capacity, slots) of each forward pass and the number of its pieces."""
    seen = []
    forward = continuous.forward

    def recorded(model, pool, pieces, wanted):
        seen.append((pool.capacity, pool.slots, len(pieces)))
        return forward(model, pool, pieces, wanted)

    monkeypatch.setattr(continuous, "forward", recorded)
    return seen


def fill(pool, slot, text):
    """As a forward pass over the text would leave the slot: keys are the tokens, values their negatives."""
    place, tokens = torch.full((len(text),), slot), torch.tensor(text, dtype=torch.float32)
    key = tokens[:, None, None].expand(-1, 2, 4)
    pool.write(0, place, torch.arange(len(text)), key, -key)
    pool.filled[slot] = len(text)


def test_the_capacity_fits_the_longest_text():
    pool = Pool(16_384, 256)
    assert pool.fitting(200) == pool.fitting(256) == 256, "as it is"
    assert pool.fitting(257) == 384, "by half, so that not every token makes it grow"
    assert pool.fitting(6000) == 6016
    assert pool.fitting(20_000) == 20_032, "one request is always served"
    assert Pool(16_384, 6016).fitting(200) == 320, "with room for some tokens"
    assert Pool(16_384, 6016).fitting(3000) == 6016, "too long only where it is twice what is needed"
    assert Pool(256, 128).fitting(60) == 128, "never a change that changes nothing"


def test_growing_by_half_stays_within_the_budget():
    for budget, capacity in ((16_384, 6016), (1000, 384), (640, 256)):
        pool = Pool(budget, capacity)
        grown = pool.fitting(capacity + 1)
        assert capacity < grown
        assert 2 * grown <= budget


def test_what_fits_stays_when_slots_become_shorter():
    pool = Pool(640, 256)
    assert pool.slots == 2
    texts = [[7, 8, 9], list(range(200))]
    for slot, text in enumerate(texts):
        pool.take(slot, np.array(text), 0)
        fill(pool, slot, text)
    pool.release(1)
    assert pool.resize(64) == {0: 0}
    assert (pool.capacity, pool.slots) == (64, 10)
    assert pool.held.tolist() == [True] + [False] * 9
    for text in texts:
        slot, shared, _ = pool.longest_prefix(np.array(text))
        assert shared == min(len(text), 64)
        assert pool.keys[0][slot, 0, :shared, 0].tolist() == text[:shared]
        assert pool.values[0][slot, 1, :shared, 3].tolist() == [-token for token in text[:shared]]


def test_of_what_nobody_holds_the_latest_stays_when_slots_become_fewer():
    pool = Pool(384, 64)
    for slot in range(6):
        pool.take(slot, np.array([10 + slot]), 0)
        fill(pool, slot, [10 + slot])
    for slot in (4, 2, 0, 3):
        pool.release(slot)
    pool.take(4, np.array([14]), 1)  # held again, after others that were let go later
    assert pool.resize(96) == {1: 0, 4: 1, 5: 2}
    assert pool.contents[:, 0].tolist() == [11, 14, 15]
    pool.release(2)
    assert pool.resize(64) == {0: 0, 1: 1}
    assert pool.contents[:, 0].tolist() == [11, 14, 15, -1, -1, -1]


def test_one_long_prompt_leaves_the_slots_long_only_while_it_is_there(monkeypatch):
    model = tiny_model(max_position_embeddings=2048)
    passes = watch(monkeypatch)
    wanted = [Request(str(i), [3 + (7 * i + t) % 90 for t in range(900 if i == 10 else 20)], 8) for i in range(60)]
    found = {item.key: item for item in decode(model, wanted, token_budget=2048, step_tokens=4096)}
    assert all(capacity * slots <= 2048 for capacity, slots, _ in passes)
    assert {slots for _, slots, _ in passes} >= {2, 32}
    assert [slots for _, slots, _ in passes][-1] > 2
    # 32 slots: two turns for all, one for the long prompt, and what is lost in between.
    assert len(passes) <= 5 * 8
    for request in wanted[8:13]:
        assert found[request.key].ids == oracle.decode(model, request, Sampling({})).ids


def test_a_long_prompt_that_comes_in_puts_nobody_off(monkeypatch):
    """It waits until there is room; the others would have to be begun anew."""
    released, release = [], continuous._Decoder._release

    def recorded(decoder, row):
        released.append(row.request.key)
        release(decoder, row)

    monkeypatch.setattr(continuous._Decoder, "_release", recorded)
    model = tiny_model(max_position_embeddings=2048)
    wanted = [Request(str(i), [3 + i] * (900 if i == 5 else 20), 4 + i % 3) for i in range(20)]
    found = decode(model, wanted, token_budget=2048)
    assert sorted(released) == sorted(item.key for item in found), "each once, at its end"
