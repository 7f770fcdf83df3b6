"""What continuous decoding reads and holds: no token twice without need, no shared beginning twice, memory by the budget."""

import numpy as np
import pytest
import torch

from mixsd.decoding import continuous, engine, oracle, packed
from mixsd.decoding.packed import NAME, Piece, Pool, forward
from mixsd.decoding.requests import Request, Sampling
from mixsd.randomness import coins
from tests.decoding.helpers import STOPS, decode, requests
from tests.tiny import ARCHITECTURES, tiny_model


@pytest.fixture
def passes(monkeypatch):
    """The pieces of every forward pass of the decoder."""
    seen = []

    def recorded(model, pool, pieces, wanted):
        seen.append(list(pieces))
        return forward(model, pool, pieces, wanted)

    monkeypatch.setattr(continuous, "forward", recorded)
    return seen


def read(passes):
    return sum(len(piece.tokens) for pieces in passes for piece in pieces)


def test_lambda_0_reads_one_conditional_and_no_token_twice(passes):
    wanted = requests(0.0)
    found = decode(tiny_model(), wanted)
    expert = {request.key: len(request.expert_ids) for request in wanted}
    assert read(passes) == sum(expert[item.key] + len(item.ids) - 1 for item in found)
    assert all(item.base_logprobs == [] for item in found)


@pytest.mark.parametrize("lam", [0.3, 0.7, 1.0])
def test_every_token_is_read_at_most_once_by_each_conditional(passes, lam):
    wanted = requests(lam)
    found = decode(tiny_model(), wanted, wants_logprobs=lambda decoding: True)
    bound = {r.key: len(r.naive_ids) + len(r.expert_ids) for r in wanted}
    assert read(passes) <= sum(bound[item.key] + 2 * (len(item.ids) - 1) for item in found)


def test_a_step_is_taken_by_every_row_and_by_no_ended_one(passes):
    model = tiny_model()
    wanted = requests(0.3)
    found = decode(model, wanted)
    # Nobody waits for anybody: as many passes as the longest target has tokens.
    assert len(passes) == max(len(item.ids) for item in found)
    assert len({len(item.ids) for item in found}) > 1, "else nothing ended early"
    rows = [len(pieces) for pieces in passes]
    assert rows == [sum(len(item.ids) > t for item in found) for t in range(len(passes))]


def test_room_is_filled_as_soon_as_somebody_ends(passes):
    wanted = requests(0.0, n=20)
    found = decode(tiny_model(), wanted, token_budget=64 * 4)
    assert len(found) == 20
    # Four slots: all of them busy in every pass until the last requests are in.
    busy = [len(pieces) for pieces in passes]
    assert max(busy) == 4
    assert busy[: sum(len(item.ids) for item in found) // 4 - 12] == [4] * (sum(len(item.ids) for item in found) // 4 - 12)


def test_a_shared_beginning_is_read_once(passes):
    """Ten-shot examples, a system prompt, samples of one fact."""
    model = tiny_model()
    shots = [3 + i % 90 for i in range(100)]
    wanted = [Request(str(i), [*shots, 7 + i, 9], 4, [*shots, 50 + i, 9, 8], coins(0, str(i), lam=0.5, n=4)) for i in range(12)]
    found = decode(model, wanted, token_budget=200_000)
    assert read(passes) < 100 + 12 * (2 + 3 + 2 * 4)
    for request in wanted:
        truth = oracle.decode(model, request, STOPS)
        (got,) = [item for item in found if item.key == request.key]
        assert (got.ids, got.sources) == (truth.ids, truth.sources)


def test_a_retry_reads_no_prompt_again(passes):
    model = tiny_model()
    (request,) = [r for r in requests(0.5) if r.key == "fact-3"]
    again = [request]
    found = []
    stream = continuous.decode(model, lambda: again.pop() if again else None, STOPS, token_budget=64 * 2)
    first = next(stream)
    before = read(passes)
    again.append(Request("again", request.naive_ids, 12, request.expert_ids, coins(1, "again", lam=0.5, n=12)))
    found = list(stream)
    assert [item.key for item in [first, *found]] == ["fact-3", "again"]
    assert read(passes) - before <= 2 * len(found[0].ids), "only the last token of each prompt, for its logits"
    truth = oracle.decode(
        model, Request("again", request.naive_ids, 12, request.expert_ids, coins(1, "again", lam=0.5, n=12)), STOPS
    )
    assert found[0].ids == truth.ids


def test_memory_is_the_budgets_whatever_there_is_to_do(monkeypatch):
    pools = []

    class Watched(Pool):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            pools.append(self)

    monkeypatch.setattr(continuous, "Pool", Watched)
    model = tiny_model()
    for n in (3, 60):
        taken = []
        stream = iter(requests(0.3, n=n))

        def take(stream=stream, taken=taken):
            taken.append(next(stream, None))
            return taken[-1]

        done = 0
        for _ in continuous.decode(model, take, STOPS, token_budget=1000):
            done += 1
            assert len([request for request in taken if request]) - done <= 1000 // 64 + 1, (
                "requests are taken when there is room"
            )
        assert done == n
    sizes = [sum(block.numel() for block in pool.keys.values()) for pool in pools]
    assert sizes[0] == sizes[1] > 0
    assert all(pool.slots * pool.capacity <= 1000 for pool in pools)


def test_texts_that_outgrow_their_slots_put_others_off(passes):
    """Slots are made longer and fewer; who is put off goes on from its own ids and not from new ones."""
    model = tiny_model()
    sampling = Sampling({})
    wanted = [Request(str(i), [3 + i, 4, 5], 150, noise=None) for i in range(4)]
    found = decode(model, wanted, sampling, token_budget=512)
    assert {piece.slot for pieces in passes for piece in pieces} == {0, 1, 2, 3}
    assert any(piece.start <= 3 and len(piece.tokens) > 60 for pieces in passes for piece in pieces), "one was begun anew"
    for item in found:
        truth = model.generate(
            torch.tensor([[3 + int(item.key), 4, 5]]), max_new_tokens=150, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert item.ids == truth[0, 3:].tolist()


def test_only_wanted_log_probabilities_are_completed(passes):
    model = tiny_model()
    wanted = requests(0.3)
    asked = []

    def wants(decoding):
        asked.append(decoding.key)
        return decoding.key in ("fact-1", "fact-4")

    for item in decode(model, wanted, wants_logprobs=wants):
        (request,) = [r for r in wanted if r.key == item.key]
        truth = oracle.decode(model, request, STOPS).base_logprobs
        np.testing.assert_allclose(item.base_logprobs, truth[: len(item.base_logprobs)], atol=1e-9)
        if item.key in ("fact-1", "fact-4"):
            assert len(item.base_logprobs) == len(truth)
    assert len(asked) == len(set(asked)), "nobody is asked twice"


def test_a_request_for_no_token_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        decode(tiny_model(), [Request("a", [3], 0)])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logits_are_the_models_own(architecture, fused, monkeypatch):
    """Texts of very different lengths, read in parts, past the sliding window; and the model is left as it was.

    `fused` is the path of accelerators, here on the CPU.
    """
    monkeypatch.setattr(packed, "_fuses", lambda query: fused)
    model = tiny_model(architecture)
    usual = model.config._attn_implementation
    texts = [[3 + (i * n) % 90 for i in range(n)] for n in (3, 17, 30, 9, 1)]
    pool = Pool(1024, 50)
    with torch.inference_mode():
        for part in (0, 1):
            cut = [max(1, len(text) // 2) for text in texts]
            pieces = [
                Piece(slot, 0, text[:half]) if part == 0 else Piece(slot, half, text[half:])
                for slot, (text, half) in enumerate(zip(texts, cut, strict=True))
                if part == 0 or text[half:]
            ]
            logits = forward(model, pool, pieces, [(i, len(piece.tokens) - 1) for i, piece in enumerate(pieces)])
            for piece, row in zip(pieces, logits, strict=True):
                own = model(torch.tensor([texts[piece.slot][: piece.end]])).logits[0, -1]
                torch.testing.assert_close(row, own, atol=1e-10, rtol=0)
    assert model.config._attn_implementation == usual != NAME


def test_a_model_can_be_used_while_it_decodes():
    model = tiny_model()
    ids = torch.tensor([[3, 4, 5]])
    own = model(ids).logits
    stream = iter(requests(0.3))
    for _ in continuous.decode(model, lambda: next(stream, None), STOPS, token_budget=512):
        torch.testing.assert_close(model(ids).logits, own)


def special(architecture):
    """Gemma-2 caps its scores; gpt-oss adds a sink to them, which a packed pass refuses."""
    from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig

    shape = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "sliding_window": 6, "initializer_range": 0.3,
        "attn_implementation": "eager",
    }  # fmt: skip
    if architecture == "gpt-oss":
        shape |= {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_scaling": None}
    config = {"gemma-2": Gemma2Config, "gpt-oss": GptOssConfig}[architecture](**shape)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize(("architecture", "packs"), [("gemma-2", True), ("gpt-oss", False)])
def test_attention_that_cannot_be_packed_is_decoded_in_lockstep(architecture, packs):
    model = special(architecture)
    assert engine.packs(model) == packs
    wanted = requests(0.5)
    stream = iter(wanted)
    found = {item.key: item for item in engine.decode(model, lambda: next(stream, None), STOPS, token_budget=100)}
    for request in wanted:
        truth = oracle.decode(model, request, STOPS)
        assert (found[request.key].ids, found[request.key].sources) == (truth.ids, truth.sources)


def test_usual_models_are_packed():
    assert all(engine.packs(tiny_model(architecture)) for architecture in ARCHITECTURES)


class TestPool:
    def test_the_longest_beginning_counts_only_what_was_read(self):
        pool = Pool(256, 64)
        tokens = np.arange(10)
        slot = pool.take(0, tokens, 0)
        assert pool.longest_prefix(tokens)[1] == 0, "known, and not read yet"
        assert pool.longest_prefix(tokens, {slot})[2] == 10
        pool.filled[slot] = 6
        assert pool.longest_prefix(np.array([0, 1, 2, 9])) == (slot, 3, 0)
        assert pool.longest_prefix(tokens)[:2] == (slot, 6)

    def test_a_free_slot_is_taken_where_its_content_serves_else_the_oldest(self):
        pool = Pool(256, 64)
        slots = [pool.take(0, np.array([i]), 0) for i in range(4)]
        assert sorted(slots) == [0, 1, 2, 3]
        for slot in (2, 0, 3):
            pool.release(slot)
        assert pool.take(0, np.array([9]), 1) == 0, "the source itself"
        assert pool.take(1, np.array([9]), 0) == 2, "let go first"

    def test_it_grows_within_its_budget_and_keeps_what_is_held(self):
        pool = Pool(640, 64)
        kept = [pool.take(0, np.array([i, i]), 0) for i in range(3)]
        for slot in kept:
            place = torch.tensor([slot])
            pool.write(0, place, torch.tensor([1]), torch.full((1, 2, 4), slot + 1.0), torch.full((1, 2, 4), -slot - 1.0))
        pool.release(kept[1])
        moved = pool.resize(100)
        assert (pool.capacity, pool.slots) == (128, 5)
        assert sorted(moved) == [kept[0], kept[2]]
        for old, new in moved.items():
            assert pool.keys[0][new, 0, 1, 0] == old + 1
            assert pool.values[0][new, 0, 1, 0] == -old - 1
            assert pool.contents[new, :3].tolist() == [old, old, -1]
