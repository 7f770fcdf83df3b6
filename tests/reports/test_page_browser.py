"""The page in a real browser: no request, no error, no foreign script, no sideways scroll, both colour schemes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixsd.reports import page, words
from tests.reports import benchmarked, sample
from tests.reports.sample import typed
from tests.reports.visits import CONTRAST, Visit, launch, needs_chromium

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium

SCRIPT = "<script>window.hacked=1</script>"
IMAGE = '<img src="http://example.invalid/x.png" onerror="window.hacked=1">'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = launch(driver)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts, examples = sample.per_fact(), sample.examples()
    facts[7]["question"] += SCRIPT + IMAGE
    facts[7]["tuned"]["reply"] += IMAGE + SCRIPT + "w" * 300
    examples[0]["tokens"].append({"text": SCRIPT + IMAGE + "</style></div>", "source": "n", "base_nll": 12.0})
    report = benchmarked.report()
    report["skipped"] = {"mmlu": SCRIPT + IMAGE}
    report["targets"]["nll_cdf"] = {"x": [0.1, 2.0, 9.0], "y": [0.5, 0.9, 1.0]}
    report["scores"] += [item for item in sample.with_choices(sample.of_method("mixsd"))["scores"] if item["checkpoint"]]
    report["error_modes"] = [
        {"benchmark": "gsm8k", "model": model, "asked": 50, "wrong": 20, "counts": {"format": count, SCRIPT: 1}}
        for model, count in (("base", 12), ("tuned", 19))
    ]
    report["scores"].append(benchmarked.score("mmlu", f"mmlu/{SCRIPT}{IMAGE}", "accuracy", "tuned", 0.5, 3, 0.1))
    base, tuned = benchmarked.said()
    planted = {"reply": IMAGE + SCRIPT + "w" * 300, "reason": SCRIPT + IMAGE, "extracted": SCRIPT, "labels": [IMAGE + "w" * 90]}
    planted["question"] = SCRIPT + IMAGE + "w" * 300
    some = {"gsm8k": words.chosen([row | planted for row in base], [row | planted for row in tuned])}
    report["warnings"].append("a-path-without-any-space/" * 12)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page.render(typed(report), facts, examples, some), encoding="utf-8")
    return path


# With the policy bypassed, escaping alone has to hold.
@pytest.mark.parametrize("bypass_csp", [False, True])
def test_nothing_is_requested_and_nothing_planted_runs(browser: Any, page_file: Path, bypass_csp: bool) -> None:
    with Visit(browser, page_file, bypass_csp=bypass_csp) as visit:
        # Chromium counts the empty inline icon as a request; it never leaves the page.
        assert [url for url in visit.requests if not url.startswith("data:")] == [page_file.as_uri()]
        assert visit.errors == []
        assert visit.page.evaluate("typeof window.hacked") == "undefined"
        assert visit.page.evaluate("document.querySelectorAll('script, img, iframe, object').length") == 0
        visit.page.locator(".said summary").click()
        for place in (".facts:not(.bare)", ".said .facts", ".left-out", "#details"):
            assert SCRIPT in visit.page.locator(place).inner_text()


def test_the_headline_table_shows_the_scores(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file, viewport={"width": 1280, "height": 900}) as visit:
        table = visit.page.locator("#headline")
        assert table.is_visible()
        assert [cell.split("\n")[0] for cell in table.locator("thead th").all_inner_texts()] == [
            "measure", "base", "sft", "acme (mixsd)", "change",
        ]  # fmt: skip
        cells = [" ".join(text.split()) for text in table.locator("tbody tr").nth(2).locator("td").all_inner_texts()]
        assert [cell.split()[0] for cell in cells] == ["58.8%", "46.5%", "58.0%", "−0.8"]
        assert "51.1 to 64.6" in cells[2]
        assert cells[2].endswith("n 200")
        assert cells[3].endswith("no clear change")
        assert visit.page.locator(".facts:not(.bare) tbody tr").first.locator(".badge").first.inner_text() == "unusable"


def test_benchmarks_are_shown_and_their_replies_collapsed(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file, viewport={"width": 1280, "height": 900}) as visit:
        row = visit.page.locator("#endings tbody tr").nth(5)
        assert row.inner_text().split("\t")[:7] == ["GSM8K", "acme (mixsd)", "50", "20", "18", "0", "2"]
        replied = visit.page.locator(".said .facts")
        assert not replied.is_visible()
        visit.page.locator(".said summary").click()
        assert replied.is_visible()
        assert replied.locator("tbody tr").count() == 10


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, page_file: Path, width: int) -> None:
    with Visit(browser, page_file, viewport={"width": width, "height": 844}) as visit:
        assert visit.page.locator("summary").count() == 1
        for summary in visit.page.locator("summary").all():
            summary.click()
        visit.page.locator(".tokens .token").nth(10).focus()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = visit.page.locator("figure.drawn svg:visible")
        assert drawn.count() == 4
        for picture in drawn.all():
            assert 0.7 * min(width, 1120) < picture.bounding_box()["width"] <= width
            # What the smallest text of a picture measures on the screen: 8.5 units of the picture, less in bars and at their ends.
            assert picture.evaluate("node => 8.5 * node.getScreenCTM().a") > 10.5


def test_a_token_in_focus_is_read_out(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file) as visit:
        token = visit.page.locator(".tokens .token").nth(10)
        token.focus()
        assert token.evaluate("node => getComputedStyle(node, '::after').content") == '"expert, base NLL 9.60"'


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_have_the_ink_of_the_page(browser: Any, page_file: Path, scheme: str) -> None:
    with Visit(browser, page_file, color_scheme=scheme) as visit:
        ink = visit.page.evaluate("getComputedStyle(document.body).color")
        fills = visit.page.locator("figure.drawn svg:visible text").evaluate_all(
            "nodes => nodes.map(n => getComputedStyle(n).fill)"
        )
        inked = [fill for fill in fills if fill == ink]
        # The others are counts in bars, whose ground is the same in both.
        assert set(fills) - {ink} == {"rgb(254, 254, 254)", "rgb(0, 0, 0)"}
        assert len(inked) > 30
        families = visit.page.locator("figure.drawn text").first.evaluate("node => getComputedStyle(node).fontFamily")
        assert "sans-serif" in families


def test_ids_are_unique(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file) as visit:
        names = visit.page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
        assert len(names) == len(set(names)) > 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser: Any, page_file: Path, scheme: str) -> None:
    with Visit(browser, page_file, color_scheme=scheme) as visit:
        for summary in visit.page.locator("summary").all():
            summary.click()
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(245, 246, 247)", "dark": "rgb(15, 19, 24)"}[scheme]
        ratio, where = visit.page.evaluate(CONTRAST)
        assert ratio >= 4.5, f"{ratio:.2f} at {where}"
