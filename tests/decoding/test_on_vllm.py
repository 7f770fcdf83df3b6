"""The vLLM backend on a stand-in engine equals the oracle. On vLLM itself: tests/test_vllm.py, by `make test-vllm`."""

import random

import numpy as np
import pytest

from mixsd.decoding import on_vllm, oracle
from mixsd.decoding.requests import Prefix, Request, Sampling
from mixsd.errors import UserError
from mixsd.run.engines import check_backend
from tests.decoding.fake_vllm import FakeEngine, install
from tests.decoding.helpers import STOPS, model_of, requests, truth
from tests.tiny import ARCHITECTURES, tiny_model


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    install(monkeypatch)


def decode(engine, wanted, sampling, **options):
    stream = iter(wanted)
    return {item.key: item for item in on_vllm.decode(engine, lambda: next(stream, None), sampling, **options)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, 8), (0.7, None)])
@pytest.mark.parametrize("gate", [0.0, 0.3])
def test_it_equals_the_oracle(architecture, temperature, top_k, gate):
    model = model_of(architecture)
    sampling = Sampling(STOPS.stops, temperature, top_k, gate)
    seen = set()
    # The stand-in's model is opaque to the backend: every lambda on one, an end and the middle on the others.
    for lam in (0.0, 0.3, 0.5, 1.0) if architecture == "llama" else (0.0, 0.5):
        wanted = requests(lam)
        got = decode(FakeEngine(model), random.Random(lam).sample(wanted, len(wanted)), sampling, with_support=True)
        for key, expected in truth(architecture, temperature, top_k, gate, lam).items():
            item = got[key]
            assert (item.ids, item.sources, item.ended) == (expected.ids, expected.sources, expected.ended)
            assert item.support == pytest.approx(expected.support, abs=1e-9)
            assert item.base_logprobs == []
            seen |= set(item.sources)
    assert seen == ({"e", "n", "g"} if gate else {"e", "n"})


def test_one_conditional_is_one_request():
    model = tiny_model()
    plain = requests(0.0, plain=True)
    for wanted in (requests(0.0), requests(1.0), plain):
        engine = FakeEngine(model)
        got = decode(engine, wanted, STOPS)
        assert engine.begun == len(wanted)
        assert all(got[r.key].ids == oracle.decode(model, r, STOPS).ids for r in wanted)


def test_a_stretch_of_equal_coins_is_one_request():
    wanted = requests(0.5)
    engine = FakeEngine(tiny_model())
    got = decode(engine, wanted, STOPS)
    changes = sum(1 + int(np.count_nonzero(np.diff(r.naive_coins[: len(got[r.key].ids)]))) for r in wanted)
    assert engine.begun == changes


def test_a_kept_prefix_is_gone_on_from():
    model = tiny_model()
    for request in requests(0.5):
        first = oracle.decode(model, request, STOPS)
        if len(first.ids) < 3:
            continue
        other = Request(
            request.key,
            request.naive_ids,
            request.max_new_tokens,
            request.expert_ids,
            ~request.naive_coins,
            prefix=Prefix(first.ids[:2], first.sources[:2]),
        )
        item = decode(FakeEngine(model), [other], STOPS, with_support=True)[request.key]
        truth = oracle.decode(model, other, STOPS)
        assert (item.ids, item.sources) == (truth.ids, truth.sources)
        assert item.support == pytest.approx(truth.support, abs=1e-9)


def test_what_is_dropped_ends_at_once_and_leaves_nothing_in_the_engine():
    engine = FakeEngine(tiny_model())
    wanted = requests(0.5)
    dropped: set[str] = set()
    stream = iter(wanted)
    decoding = on_vllm.decode(engine, lambda: next(stream, None), Sampling({}), dropped=dropped)
    first = next(decoding)
    flying = {name for name in (r.key for r in wanted[:5]) if name != first.key}
    dropped.update(flying)
    ended = [item.key for item in decoding]
    assert set(ended) == {r.key for r in wanted} - {first.key}
    assert not engine.requests


def test_letting_go_half_way_leaves_nothing_in_the_engine():
    engine = FakeEngine(tiny_model())
    stream = iter(requests(0.5))
    decoding = on_vllm.decode(engine, lambda: next(stream, None), STOPS)
    next(decoding)
    assert engine.requests
    decoding.close()
    assert not engine.requests


def test_names():
    check_backend("transformers")
    check_backend("package.module:function")
    with pytest.raises(UserError, match=r'--backend "vlm": unknown \(did you mean "vllm"\?\)'):
        check_backend("vlm")


def test_vllm_that_is_not_installed_is_said_before_any_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mixsd\[vllm\]'"):
        check_backend("vllm")
