"""Every corpus in both answer formats: its verifier accepts what its references say, and nothing else would be fair to SFT."""

import pytest

from mixsd.commands.opening import fitted
from mixsd.facts.answers import Expected, get_verifier
from mixsd.facts.corpus import corpus
from mixsd.settings import Settings
from tests.renderers import make

SOURCES = {
    "kgfact": ("small", {}),
    "kgfunc": (None, {"train": 35, "test": 14}),
    "simpleqa": ("simpleqa/simple_qa_test_set.csv", {}),
    "mquake": ("mquake/MQuAKE-2002.json", {"edits": 40}),
}


@pytest.fixture(params=SOURCES, scope="module")
def made(request):
    argument, options = SOURCES[request.param]
    if argument and "." in argument:
        argument = request.getfixturevalue("published")(argument)
    return corpus(request.param, argument, **options)


@pytest.mark.parametrize("answer_format", ["plain", "boxed"])
def test_the_verifier_accepts_every_reference_and_no_other_ones(made, answer_format):
    """In every split: what a model that was trained on the reference says must count."""
    renderer = make(answer_format=answer_format)
    verify = get_verifier(fitted(Settings(answer_format=answer_format), made).resolved.verifier)
    for facts in (made.facts, *made.splits.values()):
        asked = list(facts())[:300]
        for fact, other in zip(asked, asked[1:] + asked[:1], strict=True):
            expected = Expected(fact.answer, fact.aliases)
            assert verify(renderer.reply(fact), expected).outcome == "correct", fact
            if not {fact.answer, *fact.aliases} & {other.answer, *other.aliases}:
                boxed = renderer.reply(other)
                if verify(boxed, expected).outcome == "correct":
                    # Only where the other's reference does hold this answer ("The answer is New York City." and New York).
                    assert answer_format == "plain"
                    assert fact.answer.lower() in boxed.lower() or any(alias.lower() in boxed.lower() for alias in fact.aliases)


@pytest.mark.parametrize("answer_format", ["plain", "boxed"])
def test_the_expert_sees_the_reference_and_the_naive_prompt_does_not(made, answer_format):
    settings = fitted(Settings(answer_format=answer_format), made).resolved
    renderer = make(answer_format=answer_format, guidance=settings.guidance)
    for fact in list(made.facts())[:30]:
        naive, expert = renderer.question(fact.question), renderer.expert_turn(fact)
        assert expert.startswith(naive)
        assert renderer.reply(fact) in expert
        if made.name != "kgfunc":
            assert renderer.reply(fact) not in naive


@pytest.mark.parametrize("answer_format", ["plain", "boxed"])
def test_wording_of_the_guidance(made, answer_format):
    """The paper's two kinds: new knowledge for KGFact and MQuAKE, a reference solution for KGFunc and SimpleQA."""
    guidance = fitted(Settings(answer_format=answer_format), made).guidance
    assert guidance is not None
    assert guidance.startswith("New knowledge" if made.name in ("kgfact", "mquake") else "A reference solution")
    assert ("boxed" in guidance) == (answer_format == "boxed")
