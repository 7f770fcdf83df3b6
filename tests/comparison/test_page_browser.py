"""The page of a comparison in a real browser: the search, what is shown of each run, and nothing planted runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mixsd
from mixsd.comparison import page
from tests.finished_runs import two_methods
from tests.reports.visits import CONTRAST, Visit, launch, needs_chromium

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium

PLANTED = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'></style>"


def told(label: str, *tokens: tuple[str, str, float | None], **other: Any) -> dict[str, Any]:
    return {
        "label": label, "run": f"{label}-0", "status": "accepted", "reason": None, "reply": "It is Ada.", "outcome": "correct",
        "tokens": [{"text": text, "source": source, "base_nll": nll} for text, source, nll in tokens], **other,
    }  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = launch(driver)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    facts: list[dict[str, Any]] = [
        {
            "id": f"f{number}", "question": f"Who led the {word} guild?", "answer": "Ada",
            "told": [
                told("sft", ("Ada", "r", 11.5), (" led", "r", 7.9), (" it.", "r", None)),
                told("mixsd", ("It", "n", 0.1), (" was", "e", 2.0), (" Ada", "g", 9.0)),
                told("opsd", status=None, reply=None, outcome=None),
            ],
        }
        for number, word in enumerate(("baker", "Cooper", "tanner"))
    ]  # fmt: skip
    facts[2]["told"][1] |= {"status": "rejected", "reason": "answer missing", "reply": PLANTED + "w" * 700, "outcome": "wrong"}
    facts[2]["told"][1]["tokens"] = [{"text": PLANTED, "source": "n", "base_nll": 1.0}] * 200
    facts[2]["question"] += PLANTED
    material = {
        "facts": facts,
        "facts_left": 1_234,
        "notes": [],
        "errors": [
            {"benchmark": "GSM8K", "label": label, "asked": 50, "wrong": 40, "counts": {"format": 30, "collapse": 10, PLANTED: 0}}
            for label in ("base", "sft")
        ],
        "curves": [{"label": "sft", "points": [{"step": step, "memorization": 0.1 * step} for step in (1, 2)]}],
        "nll": [{"label": "references", "n": 9, "x": [0.1, 9.0], "y": [0.5, 1.0]}],
    }
    return page.write(mixsd.compare(two_methods(folder)), folder / "out", material)


# With the policy bypassed, escaping alone has to hold.
@pytest.mark.parametrize("bypass_csp", [False, True])
def test_only_our_script_runs_and_nothing_is_requested(browser: Any, page_file: Path, bypass_csp: bool) -> None:
    with Visit(browser, page_file, bypass_csp=bypass_csp) as visit:
        assert [url for url in visit.requests if not url.startswith("data:")] == [page_file.as_uri()]
        assert visit.errors == []
        assert visit.page.evaluate("typeof window.hacked") == "undefined"
        assert visit.page.evaluate("document.querySelectorAll('script, img, iframe, object').length") == 1
        for summary in visit.page.locator("summary").all()[1:]:
            summary.click()
        assert "<script>window.hacked" in visit.page.locator("#tokens .tokens").last.inner_text()


def test_the_search_leaves_what_holds_every_word(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file) as visit:
        found, facts = visit.page.locator("#found"), visit.page.locator("details.fact")
        assert found.inner_text() == "3 facts"
        for words, left in (("cooper", [1]), ("GUILD  ada", [0, 1, 2]), ("cooper tanner", []), ("answer missing", [2])):
            visit.page.fill("#search", words)
            assert [place for place in range(3) if facts.nth(place).is_visible()] == left
            assert found.inner_text() == f"{len(left)} of 3 facts"
        visit.page.fill("#search", "")
        assert found.inner_text() == "3 facts"
        visit.page.press("#search", "Enter")  # nothing is sent, and the page stays
        assert visit.page.url == page_file.as_uri()


def test_tokens_tell_their_source_and_their_surprise(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file, viewport={"width": 1200, "height": 900}) as visit:
        runs = visit.page.locator("details.fact").first.locator("article")
        assert [runs.nth(place).locator("h3").inner_text().split()[0] for place in range(3)] == ["sft", "mixsd", "opsd"]
        tokens = visit.page.locator("details.fact").first.locator(".tokens .token")
        seen = [tokens.nth(place).evaluate("node => [node.textContent, node.className, node.title]") for place in range(6)]
        assert seen[0] == ["Ada", "token t-r high", "reference, base NLL 11.50"]
        assert seen[1][1:] == ["token t-r", "reference, base NLL 7.90"]
        assert [kind for _, kind, _ in seen[3:]] == ["token t-n", "token t-e", "token t-g high"]
        # Sources are told apart without their colour as well.
        lines = {tokens.nth(place).evaluate("node => getComputedStyle(node).borderBottomStyle") for place in (0, 3, 4, 5)}
        assert lines == {"double", "dotted", "solid", "dashed"}
        tokens.nth(3).hover()
        assert tokens.nth(3).evaluate("node => getComputedStyle(node, '::after').content").strip('"') == "naive, base NLL 0.10"
        assert "no fixed target" in runs.nth(2).inner_text()


def test_what_is_cut_names_where_the_rest_is(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file) as visit:
        visit.page.locator("details.fact summary").nth(2).click()
        rejected = visit.page.locator("details.fact").nth(2).locator("article").nth(1)
        text = rejected.inner_text()
        assert "rejected" in text
        assert "answer missing" in text
        assert "40 more tokens: mixsd inspect mixsd-0 --id f2" in text
        assert "w" * 700 not in text
        assert "1,234 more facts" in visit.page.locator("#tokens").inner_text()


def test_without_scripts_everything_can_still_be_read(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file, java_script_enabled=False) as visit:
        assert not visit.page.locator("#search").is_visible()
        assert all(fact.is_visible() for fact in visit.page.locator("details.fact").all())
        second = visit.page.locator("details.fact").nth(1)
        assert not second.locator("article").first.is_visible()
        second.locator("summary").click()
        assert second.locator("article").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_every_width_and_scheme(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    with Visit(browser, page_file, viewport={"width": width, "height": 800}, color_scheme=scheme) as visit:
        for summary in visit.page.locator("summary").all()[1:]:
            summary.click()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        kind = "narrow" if width == 390 else "wide"
        for name in ("picture", "errors", "curves", "nll"):
            assert visit.page.locator(f"#{name} figure.{kind}").is_visible(), name
        assert visit.page.locator("#errors tbody tr").count() == 2
        ratio, where = visit.page.evaluate(CONTRAST)
        assert ratio >= 4.5, f"{ratio:.2f} at {where}"
