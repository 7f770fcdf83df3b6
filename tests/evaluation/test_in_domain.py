"""The suite `in-domain` and the scores of edits: what is asked, what belongs together, and what each number counts."""

import pytest

from mixsd import statistics
from mixsd.errors import UserError
from mixsd.evaluation import suites
from mixsd.evaluation.questions import Material, Reply, about, ask, generate
from mixsd.evaluation.scores import compare
from mixsd.facts.answers import get_verifier
from mixsd.facts.corpus import corpus
from mixsd.facts.fact import Fact
from mixsd.settings import Settings
from tests.renderers import make

SETTINGS = Settings(max_new_tokens=7).resolved


def material(facts, splits=None, labels=()):
    return Material(facts, splits or {}, labels, make(), SETTINGS, get_verifier("contains"))


def test_everything_a_corpus_brings_is_asked_but_what_checkpoints_are_chosen_on():
    made = corpus("kgfact", "3x4")
    facts = list(made.facts())
    asked = suites.questions("in-domain", material(facts, made.splits, made.labels))
    counts = {split: sum(q.split == split for q in asked) for split in {q.split for q in asked}}
    assert counts == dict.fromkeys(("train", "paraphrase", "retrieval"), 12) | {"two_hop": 4, "two_hop_context": 4}
    assert len({q.key for q in asked}) == len(asked)
    assert {q.max_new_tokens for q in asked} == {7}
    validation = {fact.question for fact in made.splits["validation"]()}
    assert not validation & {q.user for q in asked}
    # Tests of one fact are one observation, together with the fact's own question.
    ids = {fact.id for fact in facts}
    assert {q.group for q in asked if q.split in ("train", "paraphrase")} == ids
    first = next(q for q in asked if q.split == "train")
    assert first.labels == (f"relation {facts[0].meta['relation']}", "domains Person-Location")


def test_facts_without_tests_are_asked_in_other_words():
    facts = [Fact("Who runs Orm?", "Una", paraphrases=("Orm is run by whom?",)), Fact("Where is Orm?", "Kell")]
    asked = suites.questions("in-domain", material(facts))
    assert [q.split for q in asked] == ["train"] * 2 + ["paraphrase"] * 3
    assert asked[2].user == "Orm is run by whom?"
    assert all("Where is Orm?" in q.user for q in asked[3:])


class Parrot:
    """Says what it was told to for each user turn."""

    def __init__(self, renderer, said):
        self.said = {tuple(renderer.ids(user)): Reply(renderer.tokenizer.encode(text), False) for user, text in said.items()}

    def replies(self, prompts):
        return {prompt.key: self.said[tuple(prompt.ids)] for prompt in prompts}


EDIT = Fact("Who runs Orm?", "Una", old_answer="Bo Lind", meta={"old_aliases": ["Bo"], "relation": "runs"})


@pytest.mark.parametrize(
    ("reply", "outcome", "old"),
    [
        ("Una runs it.", "correct", False),
        ("Bo Lind runs it.", "wrong", True),
        ("It is Bo.", "wrong", True),
        ("Not Bo, but Una.", "correct", False),
        ("Kim runs it.", "wrong", False),
        ("Bowman runs it.", "wrong", False),
    ],
)
def test_an_edit_is_learnt_or_the_old_answer_kept_or_neither(reply, outcome, old):
    renderer = make()
    question = about(EDIT, "k", "train", EDIT.question, renderer, get_verifier("contains"), 9)
    (row,) = ask([question], renderer, Parrot(renderer, {EDIT.question: reply}))
    assert (row["outcome"], row["old"]) == (outcome, old)


def test_a_fact_that_is_no_edit_says_nothing_of_old_answers():
    renderer, fact = make(), Fact("Where?", "Kell")
    question = about(fact, "k", "train", fact.question, renderer, get_verifier("contains"), 9)
    (row,) = ask([question], renderer, Parrot(renderer, {"Where?": "Kell"}))
    assert "old" not in row
    assert {score["metric"] for score in compare("in-domain", [row], None)} == {
        "accuracy",
        "unparseable_share",
        "error_share",
        "truncated_share",
    }


def row(key, outcome, *, old=None, labels=(), group=None):
    found = {"key": key, "split": "train", "group": group or key, "labels": list(labels), "prompt_hash": key}
    return {**found, "outcome": outcome, "truncated": False, **({} if old is None else {"old": old})}


def test_edited_old_and_other_add_up_and_labels_have_scores_of_their_own():
    rows = [
        row("a", "correct", old=False, labels=["relation x"]),
        row("b", "wrong", old=True, labels=["relation x"]),
        row("c", "wrong", old=False, labels=["relation y"]),
        row("d", "unparseable", old=False, labels=["relation y"]),
        row("e", "error", old=False, labels=["relation y"]),
    ]
    found = {(s["split"], s["metric"]): s for s in compare("in-domain", rows, None)}
    values = {metric: found["train", metric]["value"] for metric in ("accuracy", "old_answer_share", "other_answer_share")}
    assert values == {"accuracy": 1 / 4, "old_answer_share": 1 / 4, "other_answer_share": 2 / 4}
    assert {found["train", metric]["n"] for metric in values} == {4}  # an error of ours is no answer
    assert found["train/relation x", "accuracy"]["value"] == 1 / 2
    assert found["train/relation y", "accuracy"]["value"] == 0
    assert all(s["suite"] == "in-domain" for s in found.values())
    assert ("train/relation x", "truncated_share") not in found  # a part has its accuracy only


def test_wordings_of_one_fact_are_not_independent():
    """Ten right answers to ten wordings of one fact are one observation: the interval must be as wide as that of one."""
    same = [row(str(i), "correct", group="fact") for i in range(10)]
    apart = [row(str(i), "correct") for i in range(10)]
    low = {name: compare("in-domain", rows, None)[0]["low"] for name, rows in (("same", same), ("apart", apart))}
    assert low["same"] == compare("in-domain", same[:1], None)[0]["low"] < low["apart"]


@pytest.mark.parametrize(
    ("named", "group"), [(None, "t"), (["a"], "t"), ({"a": 1}, "t"), (True, "t"), (2.5, "t"), ("", "t"), (7, "7"), ("x", "x")]
)
@pytest.mark.parametrize("others", [None, "Bo", 3, ["Bo", 4, None], {"a": "b"}])
def test_meta_may_hold_anything(named, group, others):
    """`fact` and `old_aliases` are read only where they are what a corpus writes; a user's may be of any kind."""
    meta = {"fact": named, "old_aliases": others, "relation": [1], "topic": None, "domains": 4}
    trained = Fact("Who runs Orm?", "Una", id="orm", old_answer="Bo Lind", meta=meta)
    test = Fact("Who is it that runs Orm?", "Una", id="t", old_answer="Bo Lind", meta=meta)
    asked = suites.questions("in-domain", material([trained], {"hard": lambda: iter([test])}, ("relation", "topic", "domains")))
    by_split = {question.split: question for question in asked}
    # A fact is its own group, whatever it is about.
    assert {by_split[split].group for split in ("train", "paraphrase")} == {"orm"}
    assert by_split["hard"].group == group
    assert by_split["hard"].old == (("Bo Lind", "Bo") if others == ["Bo", 4, None] else ("Bo Lind",))
    assert by_split["train"].labels == ("domains 4",)


def test_two_tests_of_one_key_are_refused():
    """A reply belongs to a key: both would be given the reply to one."""
    twice = [Fact("Where?", "Kell", id="t"), Fact("When?", "1987", id="t")]
    with pytest.raises(UserError, match="suite in-domain: two questions are called hard/t"):
        suites.questions("in-domain", material([Fact("Q?", "A")], {"hard": lambda: iter(twice)}))


class Counting(Parrot):
    """Says "Una" to everything and remembers how long a reply might have been."""

    def __init__(self, renderer):
        self.reply = Reply(renderer.tokenizer.encode("Una"), False)
        self.limits = {}
        self.windows = []

    def replies(self, prompts):
        self.limits |= {prompt.key: prompt.max_new_tokens for prompt in prompts}
        self.windows.append(len(prompts))
        return {prompt.key: self.reply for prompt in prompts}


def test_no_prompt_is_asked_beyond_the_context():
    renderer, verifier = make(), get_verifier("contains")
    wordings = {"short": "Who?", "near": "Who? " + "x" * 60, "over": "Who? " + "x" * 400}
    fact = Fact("Who runs Orm?", "Una", old_answer="Bo")
    asked = [about(fact, key, "hard", wording, renderer, verifier, 50) for key, wording in wordings.items()]
    context = len(renderer.ids(wordings["near"])) + 3
    answerer = Counting(renderer)
    rows = ask(asked, renderer, answerer, context)
    assert answerer.limits == {"short": 50, "near": 3}
    assert [(row["outcome"], row["reply"], row["old"]) for row in rows] == [("correct", "Una", False)] * 2 + [
        ("error", "", False)
    ]
    scores = {(s["metric"], s["model"]): s for s in compare("in-domain", rows, None)}
    assert scores["accuracy", "base"]["n"] == 2
    assert scores["error_share", "base"]["value"] == pytest.approx(1 / 3)
    generated = Counting(renderer)
    generate(asked, renderer, generated, lambda key: key != "near", context)
    assert generated.limits == {"short": 50}


def test_prompts_are_in_memory_for_a_window_of_questions(monkeypatch):
    renderer, verifier = make(), get_verifier("contains")
    asked = [about(Fact(f"Q{i}?", "Una"), str(i), "hard", f"Q{i}?", renderer, verifier, 5) for i in range(7)]
    whole = ask(asked, renderer, Counting(renderer))
    monkeypatch.setattr("mixsd.evaluation.questions.ASKED_AT_ONCE", 3)
    answerer = Counting(renderer)
    assert ask(asked, renderer, answerer) == whole
    assert answerer.windows == [3, 3, 1]


def test_shares_and_differences_too_count_facts_and_not_their_wordings():
    """Ten wordings of one fact, all learnt: what is known of the change is what one fact says; n stays what was asked."""

    def learnt(grouped):
        before = [row(str(i), "wrong", old=True, group="fact" if grouped else None) for i in range(10)]
        after = [row(str(i), "correct", old=False, group="fact" if grouped else None) for i in range(10)]
        return {(s["metric"], s["model"]): s for s in compare("in-domain", before, after)}

    one = {
        (s["metric"], s["model"]): s
        for s in compare("in-domain", [row("0", "wrong", old=True)], [row("0", "correct", old=False)])
    }
    same, apart = learnt(True), learnt(False)
    for key, score in same.items():
        assert (score["value"], score["n"]) == (apart[key]["value"], 10)
        assert (score["low"], score["high"]) == (one[key]["low"], one[key]["high"]), key
    delta, found = apart["accuracy_delta", "tuned"], statistics.paired_difference([0.0] * 10, [1.0] * 10)
    assert (delta["low"], delta["high"]) == (found.low, found.high)
