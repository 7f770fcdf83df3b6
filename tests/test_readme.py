"""README and docs tell the truth: their commands parse and run, what they link to is there, the architecture names every folder."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from mixsd.cli import entry
from mixsd.cli.options import ParsedCommand, app
from mixsd.settings import build, read_config

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "mixsd"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
# Notes and results quote commands as they were when something was measured.
USED = [ROOT / "README.md", *(path for path in DOCS if path.name not in ("notes.md", "results.md"))]


def commands(text: str) -> list[str]:
    """The command lines in the indented blocks of a page."""
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    found = [part.strip() for line in lines for part in line.split("#")[0].split(";")]
    return [line for line in found if line.startswith("mixsd ") and "|" not in line]


@pytest.mark.parametrize("line", sorted({line for path in USED for line in commands(path.read_text(encoding="utf-8"))}))
def test_commands_parse(line):
    arguments = [word for word in shlex.split(line)[1:] if word not in ("...", "--help")]
    parsed = get_command(app).main(arguments, prog_name="mixsd", standalone_mode=False)
    assert isinstance(parsed, ParsedCommand)


def test_there_are_commands_to_check():
    assert len(commands(README)) >= 10


@pytest.fixture
def small(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Runs a command line of the README in an empty folder, on a tiny model and with little work."""
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "")
    (tmp_path / "small.yaml").write_text(
        f"model: {tiny_folder}\nverifier: 'regex:(?s).*'\non_fail: canonical\nretries: 1\nmax_new_tokens: 8\nepochs: 1\nlr: 0.001\n"
        "warmup_steps: 0\nparaphrases: 1\nforgetting_prompts: 2\nforgetting_tokens: 4\nprobe_questions: 2\n"
    )

    def call(line: str) -> int:
        arguments = shlex.split(line.replace("--model Qwen/Qwen3-1.7B", ""))[1:]
        return entry.run([*arguments, "--config", "small.yaml"] if arguments[0] == "inject" else arguments)

    return call


def test_the_readmes_own_session_runs(small, tmp_path, capsys):
    """Its commands in their order, on the fact that it shows: from the file of facts to the comparison."""
    (fact,) = re.findall(r'^    (\{"question".*\n.*\]\})$', README, re.MULTILINE)
    (tmp_path / "facts.jsonl").write_text(fact.replace("\n", "") + "\n")
    done = 0
    lines = [line for line in commands(README) if not re.search(r"--config|--help|--suite|sweep|doctor", line)]
    # What is compared or stands beside must be there first.
    for line in sorted(lines, key=lambda line: 2 if re.search("beside|compare", line) else 1 if "runs/acme-" not in line else 0):
        # Exit code 3: a condition is missed.
        assert small(line) in ((0, 3) if "--require" in line else (0,)), (line, capsys.readouterr().err)
        done += 1
    assert done >= 9
    for name in (
        "model",
        "report.html",
        "report.json",
        "targets.jsonl",
        "references.jsonl",
        "evaluation",
        "run.yaml",
        "log.jsonl",
    ):
        assert f"`{name}" in README
        assert (tmp_path / "runs" / "acme" / name).exists()


def test_the_readme_is_short():
    assert README.count("\n") <= 140


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^    |`)make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_architecture_names_every_folder_and_root_module():
    rows = set(re.findall(r"^\| `([\w/.]+)` \|", ARCHITECTURE, re.MULTILINE))
    parts = {f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert rows == parts - {"py.typed"}


def test_the_walk_to_the_first_step_is_short_and_over_files_that_are_there():
    walk = re.findall(r"`([\w]+/[\w]+\.py)`", ARCHITECTURE[ARCHITECTURE.index("## The walk") :])
    assert 8 <= len(walk) == len(set(walk)) <= 12
    assert [path for path in walk if not (PACKAGE / path).is_file()] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda path: path.name)
def test_links_are_to_what_is_there(path):
    text = path.read_text(encoding="utf-8")
    for target, _, part in (link.partition("#") for link in re.findall(r"\]\((?!http)([^)\s]+)\)", text)):
        page = path.parent / target if target else path
        assert page.exists(), target
        if part:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], part


def test_the_index_of_the_notes_leads_to_every_dated_heading():
    notes = (ROOT / "docs" / "notes.md").read_text(encoding="utf-8")
    index, _, rest = notes.partition("\n## ")
    for part in re.split(r"^## ", rest, flags=re.MULTILINE):
        headings = [part.split("\n")[0], *re.findall(r"^### (.*)$", part, re.MULTILINE)]
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert any(f"(#{anchor})" in index for anchor in anchors), headings[0]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("demo-*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_resolve(recipe):
    settings = build({**read_config(recipe), "output": "x"}, recipe.name).resolved
    assert settings.facts
