"""Which program does a reply write? Fenced blocks, and what joins them to a HumanEval prompt. Nothing is executed or compiled.

A HumanEval prompt is the beginning of a file, and at its end the function to write, which a reply writes anew or goes on with.
"""

import ast
import re
import textwrap
import threading
import warnings
from itertools import takewhile

from mixsd.facts.answers import without_thinking

# Part of every cache key that holds programs or their outcomes: raise it whenever any program of this file can change.
scorer_version: str = "1"

_OPEN = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)")
# "Here it is: ```python": only with a language, for three ticks may also close what they stand behind.
_OPEN_BEHIND_TEXT = re.compile(r"(?P<indent>)(?P<fence>`{3,})(?P<info>py\w*)[ \t]*", re.IGNORECASE)
_PYTHON = re.compile(r"(?:py|python|python3|py3|python2|ipython|\{?\.?python\}?)?", re.IGNORECASE)


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks of a text in their order; one that never closes goes to the end."""
    found: list[tuple[str, str]] = []
    inside: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if inside is None:
            behind = max(line.find("`"), 0)
            inside, lines = _OPEN.fullmatch(line) or _OPEN_BEHIND_TEXT.fullmatch(line[behind:]), []
        elif (last := _closes(line, inside["fence"])) is not None:
            found.append(_block(inside, [*lines, last] if last else lines))
            inside = None
        else:
            lines.append(line)
    return found if inside is None else [*found, _block(inside, lines)]


def _closes(line: str, fence: str) -> str | None:
    """What stands before the closing fence on its line, mostly nothing; None if the line does not close the block."""
    bare = line.rstrip()
    ticks = len(bare) - len(bare.rstrip(fence[0]))
    if ticks < len(fence):
        return None
    code = bare[: len(bare) - ticks]
    # "return x```" closes; a string or comment that speaks of ticks does not end with them.
    return code.rstrip() if not code.strip() or (fence[0] == "`" and "`" not in code and "#" not in code) else None


def _block(opening: re.Match[str], lines: list[str]) -> tuple[str, str]:
    """A block whose lines lose the indentation of its fence, as in a list item."""
    indent = len(opening["indent"])
    taken = [line[min(indent, len(line) - len(line.lstrip())) :] for line in lines]
    return next(iter(opening["info"].split()), ""), "".join(f"{line}\n" for line in taken)


def first_block(reply: str) -> str | None:
    """The content of the first fenced block of Python (or of no language) behind the thinking that is not blank, or None.

    Fences are three or more backticks or tildes, indented or not. A block that never closes goes to the end of the reply.
    """
    blocks = _blocks(without_thinking(reply) or "")
    return next((content for language, content in blocks if _PYTHON.fullmatch(language) and content.strip()), None)


def program(reply: str, prompt: str, entry_point: str) -> str | None:
    """The program of the first fenced block, see `first_block`; None if there is none or it does not write the function.

    - The block defines `entry_point` at its top level, cut off or not: what the prompt holds before that function (imports, helpers),
      then the block. Whatever the block defines again holds, being later.
    - The block is a body, that is indented, or returns or yields once all of it or its first line is indented: the prompt, then the block.
    - Anything else (a method of a class, a helper, an example call) does not answer.
    """
    return _joined(first_block(reply) or "", prompt, entry_point)


def lenient_program(reply: str, prompt: str, entry_point: str) -> str | None:
    """As `program`, from wherever in the reply behind the thinking the function is found.

    The first block, whatever language it claims, that defines `entry_point`; else the last block, as a body. Without blocks: an indented
    reply is a body up to its first line that is not indented; else the reply from its first line that imports or defines something,
    without the prose behind the code; else the reply as a body.
    """
    answer = without_thinking(reply)
    if answer is None:
        return None
    blocks = [content for _, content in _blocks(answer) if content.strip()]
    if blocks:
        chosen = next((block for block in blocks if _defines(block, entry_point)), blocks[-1])
        return _joined(chosen, prompt, entry_point)
    raw = answer.lstrip("\n").rstrip()
    if raw[:1] in (" ", "\t") and not _defines(raw, entry_point):
        indented = takewhile(lambda line: not line.strip() or line[0] in " \t", raw.split("\n"))
        return _joined("\n".join(indented) + "\n", prompt, entry_point)
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
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return entry_point in functions or any(isinstance(to, ast.Name) and to.id == entry_point for to in assigned)


def _returns(source: str, entry_point: str) -> bool:
    """Whether the source parses, and the function in it returns or yields something itself: not only a function inside it."""
    tree = _parsed(source)
    functions = [] if isinstance(tree, int) else [node for node in tree.body if getattr(node, "name", None) == entry_point]
    waiting = [node for function in functions[-1:] for node in ast.iter_child_nodes(function)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return False


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
