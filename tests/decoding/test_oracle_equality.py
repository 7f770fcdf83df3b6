"""Every fast path gives the oracle's tokens and sources: any batch, order, architecture, temperature, lambda and gate."""

import itertools
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mixsd.decoding import engine, oracle
from mixsd.decoding.requests import Prefix, Request, Sampling
from mixsd.randomness import coins, uniforms
from tests.decoding.helpers import LENGTH, STOPS, decode, model_of, requests, truth
from tests.tiny import ARCHITECTURES, tiny_model

pytestmark = pytest.mark.matrix


def in_lockstep(size):
    def run(model, wanted, sampling):
        batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        return [item for batch in batches for item in engine.decode_in_lockstep(model, batch, sampling, with_support=True)]

    return run


def continuously(token_budget, step_tokens):
    whole = {"wants_logprobs": lambda decoding: True, "with_support": True}
    return partial(decode, token_budget=token_budget, step_tokens=step_tokens, **whole)


# The fast paths, each with little and with much room: in the smallest, slots are refilled, long prompts are read in parts and
# requests that have begun are put off and begun again.
PATHS = {
    "lockstep 1": in_lockstep(1),
    "lockstep 3": in_lockstep(3),
    "lockstep 8": in_lockstep(8),
    "continuous tiny": continuously(1, 3),
    "continuous small": continuously(384, 16),
    "continuous large": continuously(8192, 512),
}


def by_key(found):
    return {item.key: item for item in found}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, 8), (0.7, None)])
@pytest.mark.parametrize("gate", [0.0, 0.3])
def test_every_path_equals_the_oracle(architecture, temperature, top_k, gate):
    model = model_of(architecture)
    sampling = Sampling(STOPS.stops, temperature, top_k, gate)
    wanted, expected = [], {}
    for lam in (0.0, 0.3, 0.5, 1.0):  # side by side in the batches
        wanted += [replace(request, key=f"{request.key}, {lam}") for request in requests(lam)]
        expected |= {f"{key}, {lam}": item for key, item in truth(architecture, temperature, top_k, gate, lam).items()}
    for number, path in enumerate(PATHS.values()):
        shuffled = random.Random(number).sample(wanted, len(wanted))
        got = by_key(path(model, shuffled, sampling))
        assert got.keys() == expected.keys()
        for key, item in expected.items():
            assert (got[key].ids, got[key].sources, got[key].ended) == (item.ids, item.sources, item.ended)
            np.testing.assert_allclose(got[key].base_logprobs, item.base_logprobs, atol=1e-9)
            assert got[key].support == pytest.approx(item.support, abs=1e-9)
    seen = {source for item in expected.values() for source in item.sources}
    assert seen == ({"e", "n", "g"} if gate else {"e", "n"})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_conditional_equals_oracle_and_generate(architecture):
    model = model_of(architecture)
    wanted = requests(0.0, plain=True)
    expected = {request.key: oracle.decode(model, request, Sampling({2: 2})).ids for request in wanted}
    for path in PATHS.values():
        assert {item.key: item.ids for item in path(model, wanted, Sampling({2: 2}))} == expected
    for request in wanted:
        generated = model.generate(
            torch.tensor([request.naive_ids]),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
        assert generated[0, len(request.naive_ids) :].tolist() == expected[request.key]


def test_lambda_ends_are_the_pure_conditionals():
    model = tiny_model()
    sampling = Sampling({2: 2})
    for lam, side in [(0.0, "expert_ids"), (1.0, "naive_ids")]:
        for request in requests(lam):
            pure = Request(request.key, getattr(request, side), request.max_new_tokens)
            assert oracle.decode(model, request, sampling).ids == oracle.decode(model, pure, sampling).ids


def test_every_token_is_the_argmax_of_its_source():
    """Invariant 3, checked from outside: a teacher-forced pass over each finished target."""
    model = tiny_model("qwen3")
    for request, gate in itertools.product(requests(0.5), (0.0, 0.3)):
        item = oracle.decode(model, request, Sampling({2: 2}, gate=gate))
        for source, prompt in (("n", request.naive_ids), ("e", request.expert_ids), ("g", request.expert_ids)):
            logits = model(torch.tensor([prompt + item.ids])).logits[0, len(prompt) - 1 : -1]
            for t, (token, own) in enumerate(zip(item.ids, item.sources, strict=True)):
                if own == source:
                    assert logits[t].argmax() == token


def test_gate_at_one_leaves_only_tokens_the_expert_would_take():
    model = tiny_model()
    for request in requests(0.5):
        gated = oracle.decode(model, request, Sampling({2: 2}, gate=1.0))
        pure = Request(request.key, request.expert_ids, request.max_new_tokens)
        assert gated.ids == oracle.decode(model, pure, Sampling({2: 2})).ids


@pytest.mark.parametrize("path", PATHS)
def test_a_stop_token_is_stored_as_its_stand_in_and_ends_at_once(path):
    model = tiny_model()
    request = requests(0.0, plain=True)[3]
    first = oracle.decode(model, request, Sampling({})).ids[0]
    (item,) = PATHS[path](model, [request], Sampling({first: 2}))
    assert (item.ids, item.ended) == ([2], True)
    assert item.base_logprobs == pytest.approx(oracle.decode(model, request, Sampling({first: 2})).base_logprobs)


@pytest.mark.parametrize("path", PATHS)
def test_without_a_stop_token_the_length_limit_holds(path):
    model = tiny_model()
    found = PATHS[path](model, requests(0.3), Sampling({}))
    assert len(found) == 7
    for item in found:
        assert not item.ended
        assert len(item.ids) == LENGTH - int(item.key[-1]) % 3


@pytest.mark.parametrize("path", ["lockstep 8", "continuous small", "continuous large"])
def test_company_leaves_logits_alone(path):
    """Pitfall 9: a row among rows of other lengths has the logits it has alone, fp32."""
    for architecture in ARCHITECTURES:
        model = tiny_model(architecture, dtype=torch.float32)
        wanted = requests(0.5)
        together = by_key(PATHS[path](model, wanted, Sampling({2: 2})))
        for request in wanted:
            (alone,) = PATHS[path](model, [request], Sampling({2: 2}))
            assert alone.ids == together[request.key].ids
            np.testing.assert_allclose(alone.base_logprobs, together[request.key].base_logprobs, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_share_prompts_are_the_oracles(architecture):
    """Samples of one fact: same prompts, other coins; and a plain request whose prompt is another's naive one."""
    model = model_of(architecture)
    wanted = []
    for request in requests(0.5, n=3):
        for sample in range(3):
            flips, noise = (f(0, request.key, sample=sample, n=LENGTH) for f in (lambda *a, **k: coins(*a, lam=0.5, **k), shaken))
            key = f"{request.key}/{sample}"
            wanted.append(Request(key, request.naive_ids, LENGTH, request.expert_ids, flips, noise))
        wanted.append(Request(f"{request.key}/plain", request.naive_ids, LENGTH, noise=noise))
    sampling = Sampling({2: 2}, 1.0, 8)
    expected = {request.key: oracle.decode(model, request, sampling) for request in wanted}
    for path in PATHS.values():
        got = by_key(path(model, wanted, sampling))
        for key, item in expected.items():
            assert (got[key].ids, got[key].sources) == (item.ids, item.sources)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("gate", [0.0, 0.3])
def test_a_given_beginning_is_kept_and_goes_on_as_the_oracles(architecture, gate):
    """A retry from a break: the first tokens of an earlier attempt, then other coins."""
    model = model_of(architecture)
    sampling = Sampling({2: 2}, gate=gate)
    wanted = []
    for number, request in enumerate(requests(0.5)):
        first = oracle.decode(model, request, sampling)
        kept = min(number + 1, len(first.ids) - 1)
        flips = coins(0, request.key, lam=0.5, attempt=1, n=LENGTH)
        prefix = Prefix(first.ids[:kept], first.sources[:kept])
        wanted.append(Request(request.key, request.naive_ids, request.max_new_tokens, request.expert_ids, flips, prefix=prefix))
    expected = [oracle.decode(model, request, sampling) for request in wanted]
    for path in PATHS.values():
        got = by_key(path(model, wanted, sampling))
        for request, oracles in zip(wanted, expected, strict=True):
            item = got[request.key]
            assert item.ids[: len(request.prefix.ids)] == request.prefix.ids
            assert (item.ids, item.sources, item.ended) == (oracles.ids, oracles.sources, oracles.ended)
            assert item.support == pytest.approx(oracles.support, abs=1e-9)
            np.testing.assert_allclose(item.base_logprobs, oracles.base_logprobs, atol=1e-9)


def shaken(seed, key, **address):
    return uniforms(seed, "noise", key, **address)


def test_coins_of_two_lambdas_are_nested():
    for key in map(str, range(50)):
        low, high = coins(0, key, lam=0.3, n=200), coins(0, key, lam=0.5, n=200)
        assert not (low & ~high).any()
        assert (high & ~low).any()
