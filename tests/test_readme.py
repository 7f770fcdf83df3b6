"""The README tells the truth: its commands parse, its targets exist, its layout names every file."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from mixsd.cli.commands import Work, app
from mixsd.settings import build, read_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^    .*\n)+", README, re.MULTILINE)


def commands() -> list[str]:
    lines = [line.strip() for block in BLOCKS for line in block.splitlines()]
    found = [part.strip() for line in lines for part in line.split("#")[0].split(";")]
    return sorted({line for line in found if line.startswith("mixsd ") and "|" not in line})


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    arguments = [word for word in shlex.split(line)[1:] if word != "..."]
    if "--help" in arguments:
        arguments.remove("--help")
    parsed = get_command(app).main(arguments, prog_name="mixsd", standalone_mode=False)
    assert isinstance(parsed, Work)


def test_there_are_commands_to_check():
    assert len(commands()) >= 10


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^    |`)make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_layout_names_every_module():
    """By its path, or by its name in the row of its folder."""
    rows = dict(re.findall(r"^\| `([\w/]+/)` (\|.*)$", README, re.MULTILINE))
    for path in sorted((ROOT / "src" / "mixsd").rglob("*.py")):
        name = str(path.relative_to(ROOT / "src" / "mixsd"))
        if path.name not in ("__init__.py", "__main__.py"):
            folder = f"{path.parent.relative_to(ROOT / 'src' / 'mixsd')}/"
            assert f"`{name}`" in README or f"`{path.name}`" in rows.get(folder, ""), name


def test_links_to_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("demo-*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_resolve(recipe):
    settings = build({**read_config(recipe), "output": "x"}, recipe.name).resolved
    assert settings.facts
