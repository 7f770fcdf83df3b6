"""Which requests are decoded together in lock-step, and which models are packed."""

from mixsd.decoding import engine
from mixsd.decoding.requests import Request


def batches(requests, token_budget):
    stream = iter(requests)
    return [[request.key for request in batch] for batch in engine._batches(lambda: next(stream, None), token_budget)]


def test_a_batch_padded_to_its_longest_stays_within_the_budget():
    def padded(keys):
        return len(keys) * max(wanted[int(key)] + 8 for key in keys)

    wanted = [192] * 80 + [5248] + [192] * 3
    found = batches([Request(str(i), [3] * n, 8) for i, n in enumerate(wanted)], 16_384)
    assert [key for keys in found for key in keys] == [str(i) for i in range(84)], "each once, in order"
    assert [len(keys) for keys in found] == [80, 3, 1]
    assert all(padded(keys) <= 16_384 for keys in found)


def test_one_request_is_always_served():
    assert batches([Request(str(i), [3] * 50, 8) for i in range(3)], 10) == [["0"], ["1"], ["2"]]


def test_an_expert_prompt_is_a_row_of_its_own():
    requests = [Request(str(i), [3], 8, expert_ids=[4] * 2) for i in range(5)]
    assert [len(keys) for keys in batches(requests, 40)] == [2, 2, 1]


def test_what_comes_in_while_a_batch_is_decoded_is_in_the_next():
    queue = [Request("a", [3], 8)]
    stream = engine._batches(lambda: queue.pop() if queue else None, 100)
    assert [request.key for request in next(stream)] == ["a"]
    queue.append(Request("b", [3], 8))
    assert [request.key for request in next(stream)] == ["b"]
    assert next(stream, None) is None
