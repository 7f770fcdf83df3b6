"""The page as text: escaped, complete with missing values, worst facts first, bounded."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from mixsd.reports import page as report_page
from tests.reports import sample
from tests.reports.sample import typed

ATTACK = "<script>window.hacked=1</script><img src=x onerror=\"window.hacked=1\">' onfocus='x"


class Reader(HTMLParser):
    """Collects tags, attribute names and visible text; complains about tags that are closed wrongly."""

    VOID = frozenset({"meta", "link", "line", "path", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.urls: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.urls += [value or "" for name, value in attrs if name in {"href", "src", "action"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def poisoned(value: Any) -> Any:
    """Put the attack into every text of a nested value, save where a word of ours selects something."""
    if isinstance(value, dict):
        keep = {"suite", "split", "metric", "model", "checkpoint"}
        return {key: item if key in keep else poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + ATTACK if isinstance(value, str) else value


def test_page_is_well_formed_and_asks_for_nothing() -> None:
    page = read(report_page.render(typed(sample.report()), sample.per_fact(), sample.examples()))
    assert "script" not in page.tags
    assert all(url.startswith(("#", "data:")) for url in page.urls)
    assert "Mirela Stanković" in page.text


def test_headline_cells_hold_value_interval_and_n() -> None:
    page = read(report_page.render(typed(sample.report()), [], [])).text
    row = page[page.index("Memorization, trained wording") : page.index("Memorization, paraphrase")]
    assert "0.0% 0.0 to 13.8 n 24" in row
    assert "100.0% 86.2 to 100.0 n 24 ▲ better" in row
    assert "95.8% 79.8 to 99.3 n 24 +95.8 pp +78.9 to +99.2 n 24 ▲ better" in row
    assert "higher is better" in row


def test_foreign_text_is_never_markup() -> None:
    page = read(report_page.render(typed(poisoned(sample.report())), poisoned(sample.per_fact()), poisoned(sample.examples())))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "<script>window.hacked=1</script>" in page.text


@pytest.mark.parametrize("report", [{}, {"targets": {"n": 0, "mean_base_nll": None, "sources": {"e": None}}}])
def test_missing_values_are_dashes(report: dict[str, Any]) -> None:
    page = read(report_page.render(typed(report), [], [])).text
    assert "Nothing was measured" in page
    assert "mean base NLL – –" in page
    assert "None " not in page.replace("None was set", "")


def test_a_score_of_nothing_is_a_dash_with_its_n() -> None:
    report = dict(sample.report(), beside=[])
    for item in report["scores"]:
        item.update(value=None, n=0, low=None, high=None)
    page = read(report_page.render(typed(report), [], [])).text
    assert "– n 0" in page
    assert "0.0%" not in page[page.index("Result") : page.index("Requirements")]


def test_facts_that_went_wrong_come_first() -> None:
    ordered = [fact["id"] for fact in report_page.worst_first(sample.per_fact())]
    assert ordered[:4] == ["halden-16", "halden-08", "halden-20", "halden-01"]
    assert len(ordered) == 24


def test_many_facts_are_cut_and_the_page_says_where_the_rest_is() -> None:
    facts = [dict(sample.per_fact()[0], id=f"f{index}") for index in range(report_page.MOST_FACTS + 1234)]
    facts[-1] = dict(sample.per_fact()[7], id="the-rejected-one")
    page = read(report_page.render(typed(sample.report()), facts, [])).text
    assert "1,234 more facts" in page
    assert "targets.jsonl" in page
    assert "the-rejected-one" in page


def test_long_replies_and_targets_are_cut() -> None:
    fact = dict(sample.per_fact()[0], tuned={"reply": "x" * 9000, "outcome": "wrong"})
    example = {
        "id": "a",
        "question": "q",
        "tokens": [{"text": "y", "source": "e", "base_nll": 1.0}] * (report_page.MOST_TOKENS + 5),
    }
    text = report_page.render(typed(sample.report()), [fact], [example])
    assert "8,400 more characters" in text
    assert "5 more tokens" in text
    assert text.count(">y</span>") == report_page.MOST_TOKENS


def test_tokens_carry_source_nll_and_visible_whitespace() -> None:
    text = report_page.render(typed(sample.report()), [], sample.examples())
    assert re.search(r'class="token t-e high" tabindex="0" title="expert, base NLL 9\.60"> Var</span>', text)
    assert 'title="naive, base NLL 1.40">⏎\n⏎\n</span>' in text
    assert 'title="reference, base NLL –">.</span>' in text


def test_lone_surrogates_do_not_stop_the_report() -> None:
    fact = dict(sample.per_fact()[0], question="half \ud83d pair")
    report_page.render(typed(dict(sample.report(), run="\udc00")), [fact], []).encode("utf-8")


def test_attempts_are_in_numeric_order_and_the_tail_is_summed() -> None:
    bars = report_page.attempt_bars({str(number): 1 for number in range(20)} | {"2": 4})
    assert [label for label, _, _ in bars] == [*map(str, range(12)), "12+"]
    assert bars[2][1:] == (4, 50.0)
    assert bars[-1][1:] == (8, 100.0)


def many_kinds(count: int) -> dict[str, Any]:
    """A report on a split with this many kinds of question, of 1, 2, 3, ... questions each, that turns n up among them."""
    report = sample.report()
    for number in range(count):
        for model, metric in (("base", "accuracy"), ("tuned", "accuracy"), ("tuned", "accuracy_delta")):
            kind = {"suite": "in-domain", "split": f"retrieval/relation r{number}", "metric": metric, "model": model}
            report["scores"].append({**kind, "checkpoint": None, "value": 0.5, "n": number + 1, "low": 0.1, "high": 0.9})
    whole = {"suite": "in-domain", "split": "retrieval", "metric": "accuracy", "model": "tuned", "checkpoint": None}
    report["scores"].insert(0, {**whole, "value": 0.5, "n": 9, "low": 0.1, "high": 0.9})
    return report


def test_many_kinds_of_question_are_cut_where_the_page_says_so() -> None:
    page = read(report_page.render(typed(many_kinds(800)), [], [])).text
    detail = page[page.index("Accuracy by kind of question,") : page.index("Settings, base")]
    assert f"the {report_page.MOST_KINDS} kinds with the most questions; report.json has" in detail
    assert "relation r799" in detail
    assert "relation r5 " not in detail
    assert detail.index("relation r798") < detail.index("relation r799")  # in their own order
    assert len(report_page.render(typed(many_kinds(8000)), [], [])) < 800_000


def test_few_kinds_of_question_are_all_there() -> None:
    page = read(report_page.render(typed(many_kinds(3)), [], [])).text
    assert "Accuracy by kind of question." in page
    assert "more" not in page[page.index("Accuracy by kind of question.") : page.index("Settings, base")]
    assert all(f"in-domain: retrieval, relation r{number}" in page for number in range(3))
