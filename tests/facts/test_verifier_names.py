"""A verifier is asked for by its name: ours, or a function of the user's own. A bad name ends in one line that helps."""

from __future__ import annotations

import sys

import pytest

from mixsd.errors import UserError
from mixsd.facts import answers
from mixsd.facts.answers import Expected, Verdict, get_verifier


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("contians", r'verifier "contians": unknown \(did you mean "contains"\?\); known: contains, boxed, exact, number, regex'),
        ("", "unknown"),
        ("regex", "regex:PATTERN"),
        ("not a name:x", "unknown"),
        ("regex:", "empty"),
        ("regex:(", r'verifier "regex:\(": the pattern does not compile'),
        ("no_such_package.x:f", r'verifier "no_such_package.x:f" cannot be imported: No module named'),
        ("mixsd.facts.answers:boxd", r'boxd does not exist in mixsd.facts.answers \(did you mean "boxed"\?\)'),
        ("mixsd.facts.answers:scorer_version", "is not a function"),
    ],
)
def test_a_bad_name_is_one_line_that_helps(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        get_verifier(name)
    assert "\n" not in str(caught.value)


def test_a_module_that_breaks_on_import_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_verifier.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="cannot be imported: two lines"):
        get_verifier("broken_verifier:f")


def test_a_user_function(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_verifier.py").write_text(
        "from mixsd.facts.answers import Verdict\n"
        "def verify(reply, answer, aliases):\n"
        "    if reply == 'raise': raise KeyError('x\\ny')\n"
        "    if reply == 'none': return None\n"
        "    if reply == 'verdict': return Verdict('unparseable', 'z')\n"
        "    return reply in (answer, *aliases)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        verifier = get_verifier("own_verifier:verify")
    finally:
        sys.modules.pop("own_verifier", None)
    expected = Expected("a", ("b",))
    assert [verifier(reply, expected).outcome for reply in ("a", "b", "c")] == ["correct", "correct", "wrong"]
    assert verifier("verdict", expected) == Verdict("unparseable", "z")
    assert verifier("raise", expected).outcome == verifier("none", expected).outcome == "error"
    assert "KeyError" in (verifier("raise", expected).reason or "")
    assert "NoneType" in (verifier("none", expected).reason or "")


def test_every_name_in_the_table_loads() -> None:
    for name, path in answers.VERIFIERS.items():
        assert get_verifier(name) is getattr(answers, path.partition(":")[2])
