"""A run of every method on the page, in the terminal and in the card: called by its name, with what it alone has, and nothing else."""

from __future__ import annotations

import pytest

from mixsd.methods import METHODS
from mixsd.reports import card, rows, words
from mixsd.reports import page as report_page
from mixsd.reports.words import chosen_line
from tests.reports import sample
from tests.reports.sample import typed
from tests.reports.test_page import poisoned, read

SAID = {
    "mixsd": ("22 of 24 facts became training targets, learnt in 36 optimizer steps.", "NLL of the target's tokens"),
    "sft": ("22 of 24 facts became training targets, learnt in 36 optimizer steps.", "NLL of the target's tokens"),
    "opsd": (
        "Trained on 23 of 24 facts, answered anew at each of 36 optimizer steps.",
        "forward KL, teacher's top 64, renormalized, tail dropped; mean over all tokens of a step",
    ),
    "opsd-nll": (
        "Trained on 23 of 24 facts, answered anew at each of 36 optimizer steps.",
        "NLL of the teacher's likeliest token",
    ),
    "mixsd-kl": ("22 of 24 facts became training targets, learnt in 36 optimizer steps.", "the expert conditional everywhere"),
    "memit": ("22 of 24 facts were edited into the weights, without training.", "3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
}


def test_every_method_has_its_words() -> None:
    assert set(METHODS) == set(SAID)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chosen", [False, True])
def test_the_page_of_every_method(method: str, chosen: bool) -> None:
    report = sample.of_method(method)
    if chosen and method != "memit":
        report = sample.with_choices(report)
    page = read(report_page.render(typed(report), sample.per_fact_of(method), sample.examples()))
    for text in (*SAID[method], METHODS[method].title, "tokens generated"):
        assert text in page.text
    targets, edited = method not in ("opsd", "opsd-nll"), method == "memit"
    assert ("mean base NLL" in page.text) == targets
    assert ("became training targets" in page.text) == (targets and not edited)
    assert ("rejected" in page.text) == (targets and not edited)
    assert ("Attempt that was accepted" in page.text) == ("attempt 0" in page.text) == method.startswith("mixsd")
    assert ("optimizer steps" in page.text) == (not edited)
    assert ("its subject does not occur in its question" in page.text) == edited
    assert ("Along the checkpoints" in page.text) == (chosen and not edited)
    report_page.render(typed(poisoned(report)), poisoned(sample.per_fact_of(method)), [])


def test_what_was_chosen_and_tried_is_on_the_page() -> None:
    page = read(report_page.render(typed(sample.with_choices(sample.of_method("opsd"))), [], [])).text
    assert "Chosen: learning rate 2e-05, the best of 3, 1 not finite; checkpoint step 30, the first with the best" in page
    tried = page[page.index("Learning rates that were tried") :]
    assert "1e-05 36 75.0% 50.0%" in tried
    assert "2e-05 ✓ taken 30 95.8% 75.0%" in tried
    assert "0.01 – – – step 4: loss nan" in tried
    assert (
        "own replies to general prompts, 1 of their tokens for each supervised one, by the base's distributions (forward KL"
        in page
    )
    assert "of the rehearsal 0.013" in page
    assert "tokens generated 51,290 in the student's replies 46,080 in rehearsal 5,210 seconds: train 100" in page


@pytest.mark.parametrize("method", METHODS)
def test_the_card_of_every_method(method: str) -> None:
    report = sample.of_method(method)
    text = card.render(typed(report), None, "p")
    plain = text.replace("\\", "")
    for said in (*SAID[method], METHODS[method].title):
        assert said.rstrip(".") in plain
    present = {key: f"| {key} |" in plain for key in ("lambda", "retries", "samples", "epochs", "edit_steps")}
    mixed = method.startswith("mixsd")
    assert present == {
        "lambda": mixed, "retries": mixed, "samples": mixed or method in ("opsd", "opsd-nll"),
        "epochs": method != "memit", "edit_steps": method == "memit",
    }  # fmt: skip
    assert ("Mean base NLL" in plain) == (method not in ("opsd", "opsd-nll"))
    assert ("Facts that are not edited in, by reason" in plain) == (method == "memit")
    assert "tokens generated to learn from" in plain


def test_the_card_tells_what_was_chosen() -> None:
    text = card.render(typed(sample.with_choices(sample.of_method("mixsd-kl"))), None, "p")
    assert "| learning rate | 2e-05, the best of 3, 1 not finite |" in text
    assert "| checkpoint | step 30, the first with the best training score" in text
    assert "| lr |" not in text
    assert "| rehearsal | the base model's own replies" in text


def test_the_terminal_says_what_was_chosen_and_what_it_cost() -> None:
    assert words.lines(typed(sample.report())) == []
    (cost,) = words.lines(typed(sample.of_method("memit")))
    assert cost == "cost: 0 tokens generated to learn from; edit 250 s, evaluate 44 s"
    chosen, cost = words.lines(typed(sample.with_choices(sample.of_method("mixsd"))))
    assert chosen.startswith("chosen: learning rate 2e-05, the best of 3, 1 not finite; checkpoint step 30, the first with")
    assert cost == (
        "cost: 7,010 tokens generated to learn from (mixing 1,800, rehearsal 5,210); mix 31 s, train 100 s, evaluate 44 s"
    )
    captions = {method: words.headline(typed(sample.of_method(method))).caption for method in ("mixsd", "opsd", "memit")}
    assert captions == {
        "mixsd": "facts: 24 asked, 22 accepted, 1 rejected, 1 unusable",
        "opsd": "facts: 24 asked, 23 trained on, 1 unusable",
        "memit": "facts: 24 asked, 22 edited, 1 failed, 1 unusable",
    }


def test_the_last_checkpoint_is_no_choice() -> None:
    assert chosen_line(typed(sample.of_method("sft"))) == ""


def test_scores_of_checkpoints_are_no_rows_and_do_not_spoil_the_final_ones() -> None:
    plain, scored = sample.of_method("mixsd"), sample.with_choices(sample.of_method("mixsd"))
    scored["beside"][0]["scores"] += [item for item in scored["scores"] if item["checkpoint"] is not None]
    for find in (rows.headline_rows, rows.detail_rows, rows.format_rows):
        assert find(typed(scored)) == find(typed(plain))
    # A list that is out of order makes no difference.
    scored["scores"].reverse()
    assert {row.label: row.tuned for row in rows.headline_rows(typed(scored))} == {
        row.label: row.tuned for row in rows.headline_rows(typed(plain))
    }
