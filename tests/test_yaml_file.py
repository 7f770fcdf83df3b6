"""A key that stands twice is refused at every depth of a YAML file; what else may be wrong with one is in `test_settings.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsd.errors import UserError
from mixsd.settings import read_config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\nlam: 0\nlr: 2\n", "line 3: lr stands in line 1 already; keep one"),
        ("settings:\n  lr: 1\n  lr: 2\n", "line 3: lr stands in line 2 already; keep one"),
        ("runs:\n- {lam: 0}\n- lam: 1\n  lam: 2\n", "line 4: lam stands in line 3 already; keep one"),
        ("a: &x {b: 1, b: 2}\nc: *x\n", "line 1: b stands in line 1 already; keep one"),
    ],
)
def test_a_key_that_stands_twice_is_refused_at_every_depth(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        read_config(path)
    assert str(refused.value) == f"{path}: {said}"


def test_one_key_in_two_mappings_and_an_alias_of_itself_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("lam: 0\nsettings: &all {lam: 1, whole: *all}\nother: *all\n")
    values = read_config(path)
    assert (values["lam"], values["settings"]["lam"], values["other"]["whole"]["lam"]) == (0, 1, 1)
