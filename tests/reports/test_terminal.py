"""The headline in a terminal without colours, 80 columns wide."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from mixsd.reports.words import headline
from tests.reports import sample
from tests.reports.sample import typed


def drawn(report: dict[str, Any], **options: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=80, **options).print(headline(typed(report)).rich())
    return out.getvalue()


def test_eighty_plain_columns_hold_every_number() -> None:
    text = drawn(sample.report(), no_color=True)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.endswith("base 0.0% 0.0 to 13.8 24") for line in lines)
    assert any(line.endswith("sft 46.5% 39.7 to 53.4 200 -12.3 pp worse") for line in lines)
    assert any(line.endswith("acme (mixsd) 95.8% 79.8 to 99.3 24 +95.8 pp better") for line in lines)
    assert any(line.endswith("acme (mixsd) +0.079 +0.058 to +0.101 64 worse") for line in lines)
    assert "24 asked, 22 accepted, 1 rejected, 1 unusable" in text


def test_no_number_is_lost_to_long_names_and_many_runs() -> None:
    report = sample.report()
    report["beside"] = [dict(report["beside"][0], name=f"a-very-long-folder-name-{index}") for index in range(6)]
    text = drawn(report, no_color=True)
    assert text.count("-12.3 pp") == 6
    assert " ".join(text.split()).count("39.7 to 53.4 200") == 6
    assert max(map(len, text.splitlines())) <= 80


def test_foreign_names_cannot_steer_the_terminal_or_rich() -> None:
    text = drawn(dict(sample.report(), run="\x1b[31m[bold]red\nline"), force_terminal=True, color_system=None)
    assert "\x1b[31m" not in text
    assert "[bold]" in text.replace("\n", "")


def test_own_characters_fit_the_windows_code_page() -> None:
    report = sample.report()
    report["scores"][0]["value"] = None
    for sign in "\n".join(cell for row in headline(typed(report)).rows for cell in (part.line for part in row.parts)):
        sign.encode("cp1252")


def test_nothing_measured() -> None:
    text = drawn({}, no_color=True)
    assert "nothing was measured" in text
    assert "facts: 0 asked" in text
