"""The model card: front matter that parses, nothing that leaks, foreign text that stays text."""

from __future__ import annotations

import ast
import json
import re
import shlex
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd import formats
from mixsd.reports import card
from tests.reports import sample
from tests.reports.sample import typed


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def blocks(text: str) -> dict[str, str]:
    return {language: body for _, language, body in re.findall(r"^(`{3,})(\w+)\n(.*?)\n\1$", text, re.S | re.M)}


def test_front_matter() -> None:
    assert front_matter(card.render(typed(sample.report()), None, "p")) == {
        "base_model": "smollm2-135m", "license": "apache-2.0", "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["mixsd", "knowledge-injection"],
    }  # fmt: skip


def test_unknown_licence_is_left_out_and_said() -> None:
    report = sample.report()
    report["base"].update(license=None, name="evil: [\n---\nx")
    text = card.render(typed(report), None, "p")
    assert "license" not in front_matter(text)
    assert front_matter(text)["base_model"] == "evil: [␊---␊x"
    assert "not known to mixsd" in text


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("org/model", "org/model"), ("/home/ada/models/base", "base"), ("./base", "base"), ("C:\\models\\base", "base"),
        ("models/here/base", "base"), ("smollm2-135m", "smollm2-135m"),
    ],
)  # fmt: skip
def test_paths_of_the_machine_stay_out(name: str, public: str) -> None:
    report = sample.report()
    report["base"]["name"] = name
    report["settings"].update(facts="/home/ada/secret.jsonl", output="/home/ada/runs/acme")
    text = card.render(typed(report), None, "p")
    assert front_matter(text)["base_model"] == public
    assert "ada" not in text.replace("Read", "")


def test_facts_are_listed_only_when_given() -> None:
    assert "Mirela" not in card.render(typed(sample.report()), None, "p")
    text = card.render(typed(sample.report()), [{"question": "A | b?\n<b>", "answer": "`x`"}], "p")
    assert "| A \\| b? &lt;b&gt; | \\`x\\` |" in text


def test_scores_carry_n_interval_and_the_runs_beside() -> None:
    text = card.scores_markdown(typed(sample.report()))
    row = next(line for line in text.splitlines() if line.startswith("| Memorization, trained"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "Memorization, trained wording (higher is better)", "0.0% (0.0 to 13.8; n 24)", "100.0% (86.2 to 100.0; n 24; +100.0 pp)",
        "95.8% (79.8 to 99.3; n 24)", "+95.8 pp (+78.9 to +99.2; n 24)",
    ]  # fmt: skip
    assert "Probe, geography" in text
    widths = [{line.count("|") for line in table.splitlines()} for table in text.split("\n\n") if table.startswith("|")]
    assert len(widths) == 3
    assert all(len(counts) == 1 for counts in widths)


def test_nulls_and_an_empty_report() -> None:
    report = sample.report()
    for item in report["scores"]:
        item.update(value=None, n=0, low=None, high=None)
    assert "– (n 0)" in card.scores_markdown(typed(report))
    assert "Nothing was measured" in card.render(typed({}), None, "")
    assert front_matter(card.render(typed({}), None, ""))["library_name"] == "transformers"


def test_limits_name_what_was_not_measured() -> None:
    report = sample.report()
    text = card.render(typed(report), None, "p")
    assert "several facts can be joined" in text
    assert "in other words" not in text
    report["scores"] = [item for item in report["scores"] if item["split"] != "memorization/paraphrase"]
    assert "Not measured: whether the facts hold when a question is put in other words." in card.render(typed(report), None, "p")


def test_snippets_are_valid_code_for_the_trained_prompt() -> None:
    report = sample.report()
    report["settings"].update(thinking=True, system='It\'s "ours"\n```')
    code = blocks(card.render(typed(report), None, "p"))
    messages = next(
        node for node in ast.parse(code["python"]).body if isinstance(node, ast.Assign) and "messages" in ast.dump(node)
    )
    assert ast.literal_eval(messages.value)[0]["content"] == 'It\'s "ours"\n```'
    assert "enable_thinking=True" in code["python"]
    body = json.loads(shlex.split(code["bash"], comments=True)[-1])
    assert body["messages"][0]["content"] == 'It\'s "ours"\n```'
    assert body["chat_template_kwargs"] == {"enable_thinking": True}


def test_sft_is_called_by_its_name() -> None:
    text = card.render(typed(sample.of_method("sft")), None, "p")
    assert "SFT, supervised fine-tuning" in text
    assert "| lambda |" not in text


@settings(deadline=None)
@given(st.text(alphabet="`~ab\n ", max_size=40))
def test_a_fence_holds_any_text(text: str) -> None:
    lines = formats.fenced(text, "text").split("\n")
    fence = lines[0].removesuffix("text")
    assert lines[-1] == fence
    assert "\n".join(lines[1:-1]) == text
    assert not any(line.strip().startswith(fence) for line in lines[1:-1])


def test_the_exact_prompt_is_in_the_card() -> None:
    prompt = "<|im_start|>user\nWhat is ```x```?<|im_end|>\n<|im_start|>assistant\n"
    assert f"````text\n{prompt}\n````" in card.render(typed(sample.report()), None, prompt)


def in_domain(split: str, **values: Any) -> dict[str, Any]:
    score = {"suite": "in-domain", "split": split, "metric": "accuracy", "model": "tuned", "checkpoint": None}
    return {**score, "value": 0.5, "n": 8, "low": 0.2, "high": 0.8, **values}


def test_what_in_domain_tests_measure_is_not_said_to_be_unmeasured() -> None:
    report = sample.report()
    joined, public = "whether several facts can be joined", "Not measured: public benchmarks"
    text = card.render(typed(report), None, "p")
    assert joined in text
    assert public in text
    report["scores"].append(in_domain("two_hop"))
    text = card.render(typed(report), None, "p")
    assert joined not in text
    assert public in text  # the tests of a corpus are no public benchmarks
    report["scores"][-1] = in_domain("two_hop", value=None, n=0, low=None, high=None)
    assert joined in card.render(typed(report), None, "p")


def test_many_kinds_of_question_do_not_fill_the_card() -> None:
    report = sample.report()
    report["scores"] += [in_domain("retrieval"), *(in_domain(f"retrieval/relation r{n}", n=n + 1000) for n in range(700))]
    text = card.render(typed(report), None, "p")
    assert "By kind of question (the 50 of 70" in text
    assert text.count("relation r") == card.MOST_KINDS
    assert "relation r699" in text
