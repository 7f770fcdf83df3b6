"""Which program does a reply write? Fenced blocks, and what joins them to a HumanEval prompt. Nothing is executed or compiled.

A HumanEval prompt is the beginning of a file: imports, sometimes helper functions, and at its end the function to write, with its
docstring. A reply either writes the function anew or goes on where the prompt stopped.
"""

from __future__ import annotations

import ast
import re
import textwrap
import threading
import warnings
from dataclasses import dataclass

from mixsd.facts.answers import without_thinking

# Part of every cache key that holds programs or their outcomes: raise it whenever any program of this file can change.
scorer_version: str = "1"

_OPEN = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)")
# "Here it is: ```python": only with a language, for three ticks may also close what they stand behind.
_OPEN_BEHIND_TEXT = re.compile(r"(?P<indent>)(?P<fence>`{3,})(?P<info>py\w*)[ \t]*", re.IGNORECASE)
_PYTHON = re.compile(r"(?:py|python|python3|py3|python2|ipython|\{?\.?python\}?)?", re.IGNORECASE)


@dataclass(frozen=True)
class _Block:
    language: str
    content: str

    @property
    def python(self) -> bool:
        """Whether it is Python, or does not say what it is."""
        return _PYTHON.fullmatch(self.language) is not None


def _blocks(text: str) -> list[_Block]:
    """The fenced blocks of a text in their order; one that never closes goes to the end."""
    found: list[_Block] = []
    inside: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if inside is None:
            inside, lines = _opens(line), []
        elif (last := _closes(line, inside["fence"])) is not None:
            found.append(_block(inside, [*lines, last] if last else lines))
            inside = None
        else:
            lines.append(line)
    return found if inside is None else [*found, _block(inside, lines)]


def _opens(line: str) -> re.Match[str] | None:
    behind = line.find("`")
    return _OPEN.fullmatch(line) or (_OPEN_BEHIND_TEXT.fullmatch(line[behind:]) if behind > 0 else None)


def _closes(line: str, fence: str) -> str | None:
    """What stands before the closing fence on its line, mostly nothing; None if the line does not close the block."""
    bare = line.rstrip()
    ticks = len(bare) - len(bare.rstrip(fence[0]))
    if ticks < len(fence):
        return None
    code = bare[: len(bare) - ticks]
    # "return x```" closes; a string or comment that speaks of ticks does not end with them.
    return code.rstrip() if not code.strip() or (fence[0] == "`" and "`" not in code and "#" not in code) else None


def _block(opening: re.Match[str], lines: list[str]) -> _Block:
    """A block whose lines lose the indentation of its fence, as in a list item."""
    indent = len(opening["indent"])
    taken = [line[min(indent, len(line) - len(line.lstrip())) :] for line in lines]
    language = opening["info"].split()[0] if opening["info"].strip() else ""
    return _Block(language, "".join(f"{line}\n" for line in taken))


def first_block(reply: str) -> str | None:
    """The content of the first fenced block of Python behind the thinking, or None.

    Fences are three or more backticks or tildes, indented or not, with python, py, python3 or no language; blocks in other languages
    are passed over. A block that never closes goes to the end of the reply. A blank block is none.
    """
    answer = without_thinking(reply)
    blocks = [block.content for block in _blocks(answer or "") if block.python and block.content.strip()]
    return blocks[0] if blocks else None


def program(reply: str, prompt: str, entry_point: str) -> str | None:
    """The program of the first fenced block, see `first_block`; None if there is none or it does not write the function.

    - The block defines `entry_point` at its top level: the program is what the prompt holds before that function (imports, helpers),
      then the block. Whatever the block defines again holds, being later. A definition that was cut off counts: it will not run.
    - The block is a body: the program is the prompt, then the block. A body is indented, or returns or yields once it is indented by
      four spaces (all of it, or its first line alone).
    - Anything else (a method of a class, a helper, an example call) does not answer.
    """
    block = first_block(reply)
    return None if block is None else _joined(block, prompt, entry_point)


def lenient_program(reply: str, prompt: str, entry_point: str) -> str | None:
    """As `program`, from wherever in the reply behind the thinking the function is found.

    1. The first block of all, whatever language it claims, that defines `entry_point`; else the last block, as a body.
    2. Without blocks: an indented reply is a body up to its first line that is not indented. Else the reply from its first line that
       imports or defines something, without the prose behind the code. Else the reply as a body.
    """
    answer = without_thinking(reply)
    if answer is None:
        return None
    blocks = [block.content for block in _blocks(answer) if block.content.strip()]
    if blocks:
        chosen = next((block for block in blocks if _defines(block, entry_point)), blocks[-1])
        return _joined(chosen, prompt, entry_point)
    raw = answer.lstrip("\n").rstrip()
    if raw[:1] in (" ", "\t") and not _defines(raw, entry_point):
        return _joined(_indented_part(raw), prompt, entry_point)
    if start := re.search(r"^(?:import \w|from [\w.]+ import |(?:async )?def \w+\s*\(|@\w)", raw, re.MULTILINE):
        return _joined(_without_prose(raw[start.start() :], entry_point), prompt, entry_point)
    return _joined(raw, prompt, entry_point)


def _joined(block: str, prompt: str, entry_point: str) -> str | None:
    """The program of a block that defines the function or is its body, see `program`."""
    prompt = prompt if prompt.endswith("\n") else prompt + "\n"
    if _defines(block, entry_point):
        start = re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", prompt, re.MULTILINE)
        block = _at_margin(block)
        # An import from the future has to stay first.
        future = "".join(re.findall(r"^from __future__ import .*\n?", block, re.MULTILINE))
        return future + (prompt[: start.start()] if start else "") + block
    body = block.strip("\n") + "\n"
    if not body.strip():
        return None
    for candidate in (body, textwrap.indent(body, "    "), "    " + body):
        if _returns(prompt + candidate, entry_point):
            return prompt + candidate
    return prompt + body if body[0] in " \t" and not re.match(r"\s*(?:def|class)\s", body) else None


def _at_margin(block: str) -> str:
    """The block without its common indentation; one that has none stays as it is, to the spaces in its strings."""
    return textwrap.dedent(block) if block.lstrip("\n")[:1] in (" ", "\t") else block


def _parsed(source: str) -> ast.Module | int:
    """The source as a tree, or the line (from 1) at which it stops being Python."""
    try:
        # An odd escape in the model's code is not our user's warning.
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1


_PARSING = threading.Lock()  # the filters of warnings are the whole process's


def _defines(block: str, entry_point: str) -> bool:
    """Whether the block defines the function (or assigns its name) at its top level, where "top" is the block's own indentation."""
    block = _at_margin(block)
    tree = _parsed(block)
    if isinstance(tree, int):  # cut off, or prose in it
        return re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\s*\(", block, re.MULTILINE) is not None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry_point:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == entry_point for to in node.targets):
            return True
    return False


def _returns(source: str, entry_point: str) -> bool:
    """Whether the source parses, and the function in it returns or yields something itself: not only a function inside it."""
    tree = _parsed(source)
    functions = [] if isinstance(tree, int) else [node for node in tree.body if getattr(node, "name", None) == entry_point]
    if not functions:
        return False
    waiting: list[ast.AST] = list(ast.iter_child_nodes(functions[-1]))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _indented_part(raw: str) -> str:
    lines = raw.split("\n")
    end = next((at for at, line in enumerate(lines) if line.strip() and line[0] not in " \t"), len(lines))
    return "\n".join(lines[:end]) + "\n"


def _without_prose(raw: str, entry_point: str) -> str:
    """The code up to the last place where it parses and ends at a line that is not indented; all of it if there is none."""
    lines = raw.split("\n")
    ends = [at for at, line in enumerate(lines) if at and line.strip() and line[0] not in " \t)]}#"]
    end = len(lines)
    for _ in range(20):
        code = "\n".join(lines[:end]) + "\n"
        if not isinstance(error := _parsed(code), int):
            return code if _defines(code, entry_point) else raw + "\n"
        before = [at for at in ends if at < min(error, end)]
        if not before:
            break
        end = before[-1]
    return raw + "\n"
