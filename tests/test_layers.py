"""The house: folders in the order of their layers, imports that point down only, no circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mixsd

ROOT = Path(mixsd.__file__).parent

# From the ground up. A folder, or a module of the root, may import what stands before it, and files of its own.
LAYERS = (
    (
        "errors",
        "randomness",
        "killable",
        "plugins",
        "progress",
        "statistics",
        "formats",
        "storage",
        "methods",
        "settings",
    ),
    ("sandbox",),
    ("figures",),
    ("facts",),
    ("models",),
    ("decoding",),
    ("run",),
    ("targets",),
    ("evaluation",),
    ("training",),
    ("editing",),
    ("reports",),
    ("comparison",),
    ("analyse",),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),  # the way in: names only, each imported when it is asked for
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(root: Path) -> dict[str, set[str]]:
    """Which modules of the package each module imports, wherever in it the import stands, for types too."""
    files = {module_name(file, root): file for file in root.rglob("*.py")}
    full = {f"mixsd.{name}" for name in files}
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: line {node.lineno}: a relative import"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= inside if inside <= full else inside & full | {str(node.module)}
        found[name] = {target.removeprefix("mixsd.") for target in named & full} - {name}
    return found


def level(module: str) -> int:
    return LEVEL[module.partition(".")[0]]


def upward(graph: dict[str, set[str]]) -> list[str]:
    return sorted(
        f"{module} -> {target}" for module, targets in graph.items() for target in targets if level(target) > level(module)
    )


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_file_has_a_layer() -> None:
    assert {module.partition(".")[0] for module in imports(ROOT)} == set(LEVEL)


def test_no_import_points_up() -> None:
    assert upward(imports(ROOT)) == []


def test_no_circle() -> None:
    assert circle(imports(ROOT)) == []


@pytest.mark.parametrize(
    ("text", "found_up", "found_circle"),
    [
        ("def late():\n    from mixsd.cli import show\n", ["facts.fact -> cli.show"], False),
        ("from mixsd.facts import answers\n", [], True),
        ("from mixsd.facts.answers import x\n", [], True),
        ("import mixsd.facts.answers\n", [], True),
        ("from mixsd import errors\n", [], False),
    ],
)
def test_a_broken_house_is_found(tmp_path: Path, text: str, found_up: list[str], found_circle: bool) -> None:
    for name in ("cli/show.py", "errors.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "answers.py").write_text("from mixsd.facts import fact\n")
    (tmp_path / "facts" / "fact.py").write_text(text)
    graph = imports(tmp_path)
    assert upward(graph) == found_up
    assert bool(circle(graph)) is found_circle


def test_importing_the_package_brings_no_heavy_library() -> None:
    code = (
        "import sys, mixsd; print(*{'torch', 'transformers', 'numpy', 'scipy', 'statsmodels', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_public_name_is_a_folder_too() -> None:
    """An imported folder becomes an attribute of the package, so it would take the place of a function of its name."""
    inside = {module_name(file, ROOT).partition(".")[0] for file in ROOT.rglob("*.py")}
    assert not inside & set(mixsd.__all__)


def test_no_two_classes_have_one_name() -> None:
    named: dict[str, list[str]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                named.setdefault(node.name, []).append(module_name(file, ROOT))
    assert {name: places for name, places in named.items() if len(places) > 1} == {}
