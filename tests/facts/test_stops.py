"""What ends a reply, and a reply as ids and as text."""

from __future__ import annotations

import pytest

from mixsd.errors import UserError
from tests.renderers import FACT, KINDS, ends, id_of, make, make_tokenizer, text_of

# name: the token after a reply
END = {"chatml": "<|im_end|>", "thinking": "<|im_end|>", "headers": "<|eot_id|>", "no system": "<end_of_turn>", "none": "<|end|>"}


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
