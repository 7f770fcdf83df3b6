"""Which requests are decoded together in lock-step, and which models are packed."""

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma2Config, MistralConfig

from mixsd.decoding import continuous, engine, packed
from mixsd.decoding.requests import Request, Sampling
from tests.tiny import tiny_model


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


def test_passes_are_as_long_as_the_device_likes(monkeypatch):
    passes = []
    forward = continuous.forward

    def recorded(model, pool, pieces, wanted):
        passes.append(sum(len(piece.tokens) for piece in pieces))
        return forward(model, pool, pieces, wanted)

    monkeypatch.setattr(continuous, "forward", recorded)
    model = tiny_model(max_position_embeddings=2048)
    requests = [Request("a", [3 + i % 90 for i in range(1100)], 2)]
    list(engine.decode_all(model, requests, Sampling({}), token_budget=2048))
    assert max(passes) == continuous.tokens_per_pass(on_cpu=True) < continuous.tokens_per_pass(on_cpu=False)


class TestPacks:
    @pytest.mark.parametrize("architecture", ["gemma2", "mistral"])
    def test_a_window_that_attention_is_not_told_of_is_refused(self, architecture):
        """The model's own mask has the window; the trial's texts are shorter than it and cannot show that it is missing."""
        assert engine.packs(windowed(architecture))

        def untold(*arguments, sliding_window=None, **others):
            return packed._attention(*arguments, **others)

        AttentionInterface.register(packed.NAME, untold)
        try:
            assert not engine.packs(windowed(architecture))
        finally:
            AttentionInterface.register(packed.NAME, packed._attention)

    def test_a_layer_without_a_window_needs_none(self):
        model = windowed("gemma2", layer_types=["full_attention", "full_attention"])
        assert engine.packs(model)
        assert engine.packs(windowed("mistral", sliding_window=None))

    def test_no_memory_is_no_answer(self, monkeypatch):
        """To be met by whoever can ask for less, and not to be taken for a model that cannot be packed."""
        model = tiny_model()

        def exhausted(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        with monkeypatch.context() as patched:
            patched.setattr(engine, "forward", exhausted)
            with pytest.raises(torch.OutOfMemoryError):
                engine.packs(model)
        assert engine.packs(model)

    def test_what_fails_in_the_model_is_no_answer(self):
        model = tiny_model()
        attention = model.model.layers[0].self_attn
        usual = attention.forward

        def broken(*arguments, **others):
            if "mixsd_pass" in others:
                raise RuntimeError("a fault")
            return usual(*arguments, **others)

        attention.forward = broken
        with pytest.raises(RuntimeError, match="a fault"):
            engine.packs(model)

    def test_the_path_says_why(self):
        assert engine.path(tiny_model()) == "packed"
        model = tiny_model()
        model.config.is_encoder_decoder = True
        assert engine.path(model) == "lock-step: it has an encoder"


def windowed(architecture, **changes):
    """A tiny model whose sliding window is longer than the trial's texts."""
    shape = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "sliding_window": 64, "initializer_range": 0.3,
        "attn_implementation": "eager", **changes,
    }  # fmt: skip
    config = {"gemma2": Gemma2Config, "mistral": MistralConfig}[architecture](**shape)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
