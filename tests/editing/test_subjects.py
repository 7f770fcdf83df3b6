from __future__ import annotations

from typing import Any

import pytest

from mixsd.editing import MemitConfig
from mixsd.editing.edits import EditPrompt, UnusableError, cloze_of, edit_prompts, essence, start_ids, subject_end
from mixsd.errors import UserError
from mixsd.facts.fact import Fact
from tests.renderers import KINDS, make, make_tokenizer, text_of


def prompts(fact: Fact, kind: str = "chatml", prefixes: tuple[str, ...] = (), merges: Any = (), **options: Any) -> Any:
    renderer = make(tokenizer=make_tokenizer(kind, merges=merges))
    return renderer, edit_prompts(fact, renderer, MemitConfig(**options), prefixes, 4096)


def upto(renderer: Any, prompt: EditPrompt) -> tuple[str, str]:
    """The text up to the subject's last token, without it and with it."""
    return text_of(renderer, prompt.ids[: prompt.place]), text_of(renderer, prompt.ids[: prompt.place + 1])


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("form", ["question", "cloze"])
@pytest.mark.parametrize("subject", ["Orlo", "Orlo Ave Binn", "Å Björk", "日本", "O'Neil & Co."])
@pytest.mark.parametrize("sentence", ["{s} was led by", 'The "{s}" was led by', "Of {s} and {s}, he led", "Led the great {s}"])
def test_the_place_is_the_token_that_ends_the_last_occurrence(kind: str, form: str, subject: str, sentence: str) -> None:
    text = sentence.format(s=subject)
    fact = Fact(f"{text}?", "Tor", subject=subject, cloze=text)
    for prefix in ((), ("Say it.", f"What of {subject}?")):
        renderer, found = prompts(fact, kind, prefix, prompt=form)
        assert len(found) == 1 + len(prefix)
        for prompt in found:
            before, whole = upto(renderer, prompt)
            last = text[: text.rfind(subject) + len(subject)]
            assert whole.endswith(last)
            assert not before.endswith(last)


@pytest.mark.parametrize("form", ["question", "cloze"])
@pytest.mark.parametrize(
    ("merges", "token"),
    [((("l", '"'),), 'l"'), ((("e", "l"), ("el", '"')), 'el"'), ((("l", '"'), ('l"', "Ġ")), 'l" '), ((("e", "l"),), "el")],
)
def test_a_token_that_reaches_beyond_the_subject_is_its_last(form: str, merges: Any, token: str) -> None:
    renderer, found = prompts(
        Fact('Who wrote "Vel" once?', "Tor", subject="Vel", cloze='"Vel" was written by'), "chatml", (), merges, prompt=form
    )
    before, whole = upto(renderer, found[0])
    assert whole == before + token


def test_a_character_of_several_tokens_ends_with_its_last() -> None:
    renderer, found = prompts(Fact("Who is José?", "Tor", subject="José"))
    before, whole = upto(renderer, found[0])
    assert whole.endswith("José")
    assert "é" not in before
    assert len(renderer.tokenizer.encode("é")) == 2


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_question_is_the_naive_prompt_and_the_reply_a_target_of_the_renderer(kind: str) -> None:
    fact = Fact("Where is Vell?", "Orm", subject="Vell", reference="It lies in Orm.")
    renderer, found = prompts(fact, kind, reply="reference")
    assert found[0].ids == renderer.naive(fact.question)
    assert found[0].target == renderer.reference(fact)
    renderer, found = prompts(fact, kind, ("Once.",), reply="answer")
    assert found[1].ids == renderer.naive("Once. Where is Vell?")
    assert [text_of(renderer, prompt.target[:-1]).strip() for prompt in found] == ["Orm", "Orm"]
    assert found[0].target[-1] == renderer.stops.end


@pytest.mark.parametrize("kind", ["chatml", "none"])
def test_a_cloze_is_raw_text_and_never_begins_with_its_subject(kind: str) -> None:
    renderer, found = prompts(
        Fact("Who leads Vell?", "Orm", subject="Vell", cloze="Vell is led by"),
        kind,
        ("Well, then.",),
        (("V", "e"), ("l", "l"), ("Ve", "ll")),
        prompt="cloze",
    )
    start = "<|begin|>" if kind == "none" else "\n"
    assert [text_of(renderer, prompt.ids) for prompt in found] == [start + "Vell is led by", start + "Well, then. Vell is led by"]
    assert found[0].place == 1  # the subject is one token
    assert [text_of(renderer, prompt.target) for prompt in found] == [" Orm", " Orm"]


def test_a_target_that_merges_with_its_prompt_is_encoded_alone() -> None:
    renderer, found = prompts(
        Fact("Who leads Vell?", "Orm", subject="Vell", cloze="Vell is led by"), "chatml", (), (("y", "Ġ"),), prompt="cloze"
    )
    assert text_of(renderer, found[0].ids) == "\nVell is led by"
    assert text_of(renderer, found[0].target) == " Orm"


@pytest.mark.parametrize(
    ("fact", "sentence"),
    [
        (Fact("q Vell", "Orm", subject="Vell", cloze="Vell is led by "), "Vell is led by"),
        (Fact("q Vell", "Orm", subject="Vell", statement="Vell is led by Orm."), "Vell is led by"),
        (Fact("q Vell", "the Orm Inc.", subject="Vell", statement="Vell is led by the Orm Inc."), "Vell is led by"),
        (Fact("q Vell", "Orm", subject="Vell", cloze="She is led by", statement="Vell is led by Orm."), "Vell is led by"),
        # The answer stands before the subject, or not at the end, or the statement is all answer.
        (Fact("q Vell", "Orm", subject="Vell", statement="Orm leads Vell."), None),
        (Fact("q Vell", "Orm", subject="Vell", statement="Vell saw Orm there."), None),
        (Fact("q Vell", "Orm", subject="Vell", statement="Orm."), None),
        (Fact("q Vell", "...", subject="Vell", statement="Vell is led by Orm..."), None),
        (Fact("q Vell", "Orm", subject="Vell"), None),
    ],
)
def test_the_sentence_that_the_answer_completes(fact: Fact, sentence: str | None) -> None:
    assert cloze_of(fact) == sentence
    _, found = prompts(fact, prompt="cloze")
    _, asked = prompts(fact, prompt="question")
    assert (found == asked) == (sentence is None)


@pytest.mark.parametrize(
    ("text", "subject", "end"),
    [
        ("Although Al speaks", "Al", 11),
        ("Al and Al's", "Al", 9),
        ("Allan", "Al", None),
        ("who is al?", "Al", 9),
        ("al or Al", "Al", 8),
        ("Al or al", "Al", 2),
        ("C++ (language)", "C++", 3),
        ("a.b", "a*b", None),
    ],
)
def test_the_subject_is_found_as_words_of_their_own(text: str, subject: str, end: int | None) -> None:
    assert subject_end(text, subject) == end


@pytest.mark.parametrize(
    ("fact", "options", "reason"),
    [
        (Fact("Who leads Vell?", "Orm"), {}, "it has no subject"),
        (Fact("Who leads Vell?", "Orm", subject="Vill"), {}, 'its subject ("Vill") does not occur in its question'),
        (Fact("Who leads Vell?", "Orm", subject="Vill", cloze="Vell is led by"), {"prompt": "cloze"}, "does not occur"),
        (Fact("Who<|im_end|> leads Vell?", "Orm", subject="Vell"), {}, "control token"),
        (Fact("Who leads Vell?", "Orm", subject="Vell", cloze="Vell<|im_end|> is"), {"prompt": "cloze"}, "control token"),
        (Fact("Who leads Vell" + "l" * 4096 + " or Vell?", "Orm", subject="Vell"), {}, "context is 4096"),
    ],
)
def test_a_fact_that_cannot_be_edited_in_says_why(fact: Fact, options: Any, reason: str) -> None:
    with pytest.raises(UnusableError) as error:
        prompts(fact, **options)
    assert reason in str(error.value)


def test_a_template_that_changes_the_question_is_noticed() -> None:
    renderer = make()
    renderer.tokenizer.chat_template = (renderer.tokenizer.chat_template or "").replace(
        "m['content']", "m['content'].replace('leads', 'rules')"
    )
    with pytest.raises(UnusableError, match="changes its question"):
        edit_prompts(Fact("Who leads Vell?", "Orm", subject="Vell"), renderer, MemitConfig(), (), 4096)


def test_a_slow_tokenizer_is_refused() -> None:
    renderer = make()

    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(renderer.tokenizer, name)

    with pytest.raises(UserError, match="offsets"):
        essence("Vell", Slow())  # type: ignore[arg-type]


def test_what_a_raw_text_begins_with() -> None:
    chat, plain = make_tokenizer("chatml"), make_tokenizer("none")
    assert start_ids(chat) == chat.encode("\n", add_special_tokens=False)
    assert start_ids(plain) == [plain.bos_token_id]
    assert start_ids(make_tokenizer("none", adds_eos=True)) == [plain.bos_token_id]
    found = essence("Kay Ott", plain)
    assert plain.decode(found.ids) == "<|begin|>Kay Ott is a"
    assert plain.decode(found.ids[: found.place + 1]).endswith("Kay Ott")
    assert found.target == []
