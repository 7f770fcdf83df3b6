"""Mixing as a whole, on tiny random models: every fact ends with a reason, nothing depends on batch or interruption."""

import itertools

import numpy as np
import pytest

from mixsd.decoding import oracle
from mixsd.decoding.requests import Request, Sampling
from mixsd.errors import UserError
from mixsd.facts.answers import get_verifier
from mixsd.facts.fact import Fact
from mixsd.randomness import coins
from mixsd.settings import Settings
from mixsd.storage import Journal
from mixsd.targets.attempts import Case, next_attempt, record
from mixsd.targets.target import Target, summarize
from tests.targets.helpers import FACTS, essence, mixer


def ends_by_itself(reply, expected):
    return True


def test_targets_are_the_oracles(model, tokenizer, tmp_path):
    made = mixer(model, tokenizer, tmp_path, lam=0.4)
    targets = list(made.run(FACTS))
    assert [t.id for t in targets] == [f.id for f in FACTS]
    assert {t.accepted for t in targets} == {True, False}
    for fact, target in zip(FACTS, targets, strict=True):
        limit = min(24, 512 - len(made.renderer.expert(fact)))
        request = Request(
            fact.id,
            made.renderer.naive(fact.question),
            limit,
            made.renderer.expert(fact),
            coins(0, fact.id, lam=0.4, attempt=target.attempt, n=limit),
        )
        truth = oracle.decode(model, request, Sampling(made.renderer.stops.ids))
        assert (target.target_ids, target.sources) == (truth.ids, truth.sources)
        assert target.prompt_ids == request.naive_ids
        np.testing.assert_allclose(target.base_logprobs, truth.base_logprobs, atol=1e-4)
        if target.accepted:
            assert target.target_ids[-1] == 2  # ended by itself, and the end token is part of the target


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_result_is_independent_of_batch_order_and_interruption(model, tokenizer, tmp_path, temperature):
    wanted = essence(mixer(model, tokenizer, tmp_path, temperature=temperature, samples=2).run(FACTS[:5]))
    for size in (64, 1024):
        got = mixer(model, tokenizer, tmp_path, journal=f"{size}.jsonl", temperature=temperature, samples=2, token_budget=size)
        assert essence(got.run(FACTS[:5])) == wanted
    shuffled = mixer(model, tokenizer, tmp_path, journal="shuffled.jsonl", temperature=temperature, samples=2)
    assert sorted(essence(shuffled.run(FACTS[4::-1]))) == sorted(wanted)

    # Cut the journal at any byte, as a kill would: the rest is done again, nothing twice.
    whole = (tmp_path / "attempts.jsonl").read_bytes()
    for cut in (len(whole) // 3, len(whole) - 7):
        (tmp_path / "cut.jsonl").write_bytes(whole[:cut])
        assert (
            essence(mixer(model, tokenizer, tmp_path, journal="cut.jsonl", temperature=temperature, samples=2).run(FACTS[:5]))
            == wanted
        )
        rows = [row for _, row in Journal(tmp_path / "cut.jsonl").read()]
        names = [(row["id"], row["sample"], row["attempt"]) for row in rows]
        assert len(names) == len(set(names))


def test_a_finished_journal_needs_no_model(model, tokenizer, tmp_path):
    wanted = essence(mixer(model, tokenizer, tmp_path).run(FACTS))
    again = mixer(model, tokenizer, tmp_path)
    again.load_model = lambda: pytest.fail("the model was loaded")
    assert essence(again.run(FACTS)) == wanted


def test_same_seed_same_targets_other_seed_other(model, tokenizer, tmp_path):
    runs = [
        [t.target_ids for t in mixer(model, tokenizer, tmp_path, ends_by_itself, journal=f"{i}.jsonl", seed=seed).run(FACTS)]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_deterministic_attempt_is_not_repeated(model, tokenizer, tmp_path, lam):
    targets = list(mixer(model, tokenizer, tmp_path, lambda reply, expected: False, lam=lam).run(FACTS))
    rows = [row for _, row in Journal(tmp_path / "attempts.jsonl").read()]
    assert len(rows) == len(FACTS)
    assert all(t.decoded_tokens == len(t.target_ids) and not t.accepted for t in targets)


def test_at_a_temperature_every_retry_is_made(model, tokenizer, tmp_path):
    list(mixer(model, tokenizer, tmp_path, lambda reply, expected: False, lam=0.0, temperature=1.0).run(FACTS))
    assert sum(1 for _ in Journal(tmp_path / "attempts.jsonl").read()) == 5 * len(FACTS)


def test_passed_over_attempts_would_have_repeated(model, tokenizer, tmp_path):
    """With few naive coins most retries repeat: decode the ones passed over and see."""
    never = lambda reply, expected: False  # noqa: E731
    made = mixer(model, tokenizer, tmp_path, never, lam=0.05, retries=20)
    list(made.run(FACTS[:4]))
    rows = {(row["id"], row["attempt"]): row["target_ids"] for _, row in Journal(tmp_path / "attempts.jsonl").read()}
    passed = [(f, a) for f, a in itertools.product(FACTS[:4], range(21)) if (f.id, a) not in rows]
    assert passed
    for fact, attempt in passed[:12]:
        request = Request(
            "x",
            made.renderer.naive(fact.question),
            24,
            made.renderer.expert(fact),
            coins(0, fact.id, lam=0.05, attempt=attempt, n=24),
        )
        ids = oracle.decode(model, request, made.sampling).ids
        assert ids in [known for (name, _), known in rows.items() if name == fact.id]


def test_on_fail(model, tokenizer, tmp_path):
    never = lambda reply, expected: False  # noqa: E731
    dropped = list(mixer(model, tokenizer, tmp_path, never, journal="drop.jsonl").run(FACTS))
    assert not any(t.accepted for t in dropped)
    assert {t.reason for t in dropped} <= {"does not state the answer", "did not end within 24 tokens"}

    kept = list(mixer(model, tokenizer, tmp_path, never, journal="canonical.jsonl", on_fail="canonical").run(FACTS))
    for fact, target in zip(FACTS, kept, strict=True):
        assert target.accepted
        assert set(target.sources) == {"r"}
        assert target.text == fact.reference
        assert len(target.base_logprobs) == len(target.target_ids)
        assert target.decoded_tokens > 0

    with pytest.raises(UserError, match="8 facts were not accepted"):
        list(mixer(model, tokenizer, tmp_path, never, journal="error.jsonl", on_fail="error").run(FACTS))

    # Only a reply that no naive token touched is accepted: the lambda-0 fallback finds it, and says so.
    expert = {}
    for target in mixer(model, tokenizer, tmp_path, ends_by_itself, journal="zero.jsonl", lam=0.0).run(FACTS):
        expert[target.id] = target
    pure = {t.text for t in expert.values() if t.accepted}
    fallback = list(
        mixer(model, tokenizer, tmp_path, lambda r, e: r in pure, journal="expert.jsonl", lam=0.9, on_fail="expert").run(FACTS)
    )
    for target in fallback:
        if target.accepted and "n" not in target.sources:
            assert target.target_ids == expert[target.id].target_ids
    assert any(t.accepted and t.lam == 0.0 and t.attempt == 5 for t in fallback)


def test_unusable_facts_stop_nothing_unless_all_are(model, tokenizer, tmp_path):
    forged = Fact("What <|end|> now?", "x")
    long = Fact("Long?", "y", reference="y" * 600)
    targets = {t.id: t for t in mixer(model, tokenizer, tmp_path, ends_by_itself).run([forged, *FACTS, long])}
    assert targets[forged.id].status == targets[long.id].status == "unusable"
    assert "control token <|end|>" in targets[forged.id].reason
    assert "leaves no room" in targets[long.id].reason
    assert sum(t.status == "accepted" for t in targets.values()) > 0
    assert len(targets) == len(FACTS) + 2
    with pytest.raises(UserError, match="no usable fact among 2"):
        list(mixer(model, tokenizer, tmp_path, ends_by_itself, journal="none.jsonl").run([forged, long]))


def test_expert_prompt_is_never_cut(model, tokenizer, tmp_path):
    document = Fact("Where?", "there", reference="it lies there " * 8)
    made = mixer(model, tokenizer, tmp_path, ends_by_itself)
    (target,) = made.run([document])
    assert target.status != "unusable"
    assert document.reference in tokenizer.decode(made.renderer.expert(document))


def test_sft_targets_are_the_references_with_their_end(model, tokenizer, tmp_path):
    targets = list(mixer(model, tokenizer, tmp_path, method="sft").run(FACTS))
    for fact, target in zip(FACTS, targets, strict=True):
        assert tokenizer.decode(target.target_ids[:-1]) == fact.reference
        assert target.target_ids[-1] == 2
        truth = oracle_logprobs(model, target)
        np.testing.assert_allclose(target.base_logprobs, truth, atol=1e-4)
    assert not (tmp_path / "attempts.jsonl").exists()


def oracle_logprobs(model, target):
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([target.prompt_ids + target.target_ids])).logits[0]
    picked = torch.log_softmax(logits[len(target.prompt_ids) - 1 : -1], -1)
    return [float(picked[i, token]) for i, token in enumerate(target.target_ids)]


def test_poor_acceptance_is_said_at_once(model, tokenizer, tmp_path):
    said = []
    made = mixer(model, tokenizer, tmp_path, lambda reply, expected: False, retries=0)
    made.say = said.append
    facts = [Fact(f"Number {i}?", "x") for i in range(40)]
    rows_when_said = []
    made.say = lambda text: (said.append(text), rows_when_said.append(sum(1 for _ in made.journal.read())))
    list(made.run(facts))
    assert len(said) == 1
    assert "only 0 of the first" in said[0]
    assert "--gate" in said[0]
    assert rows_when_said[0] < 40


def test_coins_of_an_attempt_do_not_depend_on_the_others():
    settings = Settings(lam=0.5).resolved
    case = Case(FACTS[0], 0, 30)
    first = next_attempt(case, settings)
    record(case, first, {"accepted": False, "target_ids": [7] * 30, "sources": "n" * 30}, 0)
    second = next_attempt(case, settings)
    assert second.number == 1
    assert not np.array_equal(first.coins, second.coins)
    np.testing.assert_array_equal(second.coins, coins(0, FACTS[0].id, lam=0.5, attempt=1, n=30))


def test_target_round_trip_keeps_non_canonical_ids(tokenizer):
    """Pitfall 2: ids that no encoder would give survive, bit for bit."""
    target = Target("f", 0.3, 0, 2, [3, 9], [40, 2, 40, 2], "enge", [-0.5, -1.0, -2.0, -0.1], 9, "x", True, None, canonical=False)
    assert Target.from_json(target.to_json()) == target
    assert target.to_json()["lambda"] == 0.3


def test_summary_by_hand():
    rows = [
        Target("a", 0.3, 0, 0, [], [1, 2], "en", [-9.0, -1.0], 2, "", True, None),
        Target("b", 0.3, 0, 3, [], [1, 2], "eg", [-2.0, -8.0], 11, "", True, None, canonical=False),
        Target("c", 0.3, 0, 4, [], [1], "e", [-50.0], 7, "", False, "wrong"),
        Target("d", 0.0, 0, 0, [], [], "", [], 0, "", False, "long", usable=False),
    ]
    summary = summarize(rows)
    assert summary.statuses == {"accepted": 2, "rejected": 1, "unusable": 1}
    assert summary.to_json() == {
        "n": 2,
        "tokens": 4,
        "decoded_tokens": 20,
        "mean_base_nll": 5.0,
        "share_above_5": 0.5,
        "share_above_8": 0.25,
        "sources": {"e": 0.5, "n": 0.25, "g": 0.25, "r": 0.0},
        "noncanonical_share": 0.5,
        "attempts": {"0": 1, "3": 1},
    }


def test_verifier_failures_are_not_acceptances(model, tokenizer, tmp_path):
    made = mixer(model, tokenizer, tmp_path, retries=0)
    made.verifier = get_verifier("tests.targets.test_mix:broken_verifier")
    targets = list(made.run(FACTS))
    assert not any(t.accepted for t in targets)
    assert any((t.reason or "").startswith("the verifier failed: ") for t in targets), "with its reason"


def broken_verifier(reply, answer, aliases):
    raise RuntimeError("ours")
