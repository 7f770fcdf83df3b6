"""What a benchmark is: where its records are, what is asked about each, who judges the reply, and what proves the judge; which there are.

`mixsd benchmarks check` scores each item's reference reply, and a corrupted one, through the very judges that score a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from mixsd.errors import UserError, did_you_mean
from mixsd.evaluation.benchmarks.data import Found, Source, find
from mixsd.facts.answers import Expected, Verifier
from mixsd.facts.fact import kind
from mixsd.formats import printable
from mixsd.plugins import is_function_name, load_function
from mixsd.storage import digest

if TYPE_CHECKING:
    from mixsd.sandbox import Isolation

# Those whose unweighted mean is the paper's held-out average, in its order.
HELD_OUT = ("aime24", "math500", "gsm8k", "humaneval", "mmlu")
# Name -> the function that makes it, imported when asked for: a new benchmark is one function and one entry more.
BENCHMARKS = {name: f"mixsd.evaluation.benchmarks.published:{name}" for name in HELD_OUT}
TITLES = {"aime24": "AIME-2024", "math500": "MATH-500", "gsm8k": "GSM8K", "humaneval": "HumanEval", "mmlu": "MMLU"}
ALLOW = "--allow-code-execution"
LM_EVAL = "lm-eval:"  # begins the name of a task that lm-eval asks and scores


def title_of(suite: str) -> str:
    """What a suite is called: a benchmark by its title, a task of lm-eval that is a file by the file's name, without where it lies."""
    if is_function_name(suite):
        with suppress(UserError):  # the package of a run from elsewhere need not be here
            return printable(load_function(suite, suite)().title, keep="")
    is_file = suite.startswith(LM_EVAL) and suite.endswith((".yaml", ".yml"))
    name = LM_EVAL + PurePath(suite.removeprefix(LM_EVAL).replace("\\", "/")).name if is_file else suite
    return TITLES.get(suite, printable(name, keep=""))


@dataclass(frozen=True)
class Item:
    """One thing that a benchmark asks.

    user: the whole user turn. reference: a reply that must be judged right. strict: judges the reply in the form that was asked for.
    lenient: also takes an answer in another form. content: the hash of the record, by which a sample is drawn and two runs are compared.
    labels: the parts for which there are scores too.
    """

    id: str
    user: str
    expected: Expected
    reference: str
    strict: Verifier
    lenient: Verifier
    content: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Means:
    """What a judge may use. `weak_sandbox`: run model-written code also where it cannot be isolated from this machine."""

    weak_sandbox: bool = False


@dataclass(frozen=True)
class Proof:
    """How well the judge of a benchmark has to do on the references: at most so many missed, at least this share refused."""

    most_missed: int
    least_refused: float


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    size: how many items the published one has. read: the items of what was found. scorer: the version of its judges. corrupt: a reply
    to an item (its place in the list is given) that is wrong. samples, temperature, top_k: how often and how each item is answered.
    runs_code: its judge runs what the model wrote. needs: a module that the judges import, with what to install.
    """

    name: str
    title: str
    size: int
    source: Source
    read: Callable[[Found, Means], list[Item]]
    scorer: str
    corrupt: Callable[[Sequence[Item], int], str]
    proof: Proof
    samples: int = 1
    temperature: float = 0.0
    top_k: int | None = None
    runs_code: bool = False
    needs: tuple[str, str] | None = None

    def items(self, found: Found, means: Means) -> list[Item]:
        """Every item, in the order of the data; a `UserError` where it cannot be read, or is not this benchmark's."""
        items = self.read(found, means)
        if not items:
            raise UserError(f"{found.where}: holds nothing of {self.title}")
        for name, count in Counter(item.id for item in items).items():
            if count > 1:
                raise UserError(f"{found.where}: two records of {self.title} are called {name}")
        return items

    def require_size(self, items: Sequence[Item], found: Found, limit: int | None) -> None:
        """Refuse data that is not the whole benchmark, unless a `limit` asks for no more than is there."""
        if len(items) != self.size and (limit is None or limit > len(items)):
            files = [file for split in (found.files or {}).values() for file in split]
            raise UserError(
                f"{files[0] if len(files) == 1 else found.where}: holds {len(items):,} items of {self.title}, expected the {self.size:,} published; "
                f"get the whole of it, or ask a part with --limit {len(items)} or less"
            )

    def require_means(self, *, allow_code: bool, allow_weak: bool) -> Isolation | None:
        """The sandbox that its judge runs code in, if any; a `UserError` where it cannot work here or code may not run."""
        if self.needs and find_spec(self.needs[0]) is None:
            raise UserError(f"{self.title} needs {self.needs[0].replace('_', '-')}: {self.needs[1]}")
        if not self.runs_code:
            return None
        if not allow_code:
            raise UserError(f"{self.title} runs code that the model writes; allow it with {ALLOW}")
        from mixsd import sandbox

        return sandbox.check(allow_weak)

    def find(self, data: str | None, *, offline: bool, only_at_hand: bool = False) -> Found:
        """Where its data is, see `data.find`; a `UserError` names the benchmark."""
        try:
            return find(self.source, data, offline=offline, only_at_hand=only_at_hand)
        except UserError as error:
            raise UserError(f"{self.title}: {error}") from None


def is_benchmark(name: str) -> bool:
    """Whether a suite of this name is a benchmark: one of ours, or the user's `package.module:function` that makes one."""
    return name in BENCHMARKS or is_function_name(name)


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name: one of ours, or what the user's `package.module:function` returns."""
    if not is_benchmark(name):
        known = [*BENCHMARKS, "package.module:function"]
        raise UserError(f"{name!r}: no such benchmark{did_you_mean(name, known)}; known: {', '.join(known)}")
    made = load_function(BENCHMARKS.get(name, name), f"benchmark {name}")()
    if not isinstance(made, Benchmark):
        raise UserError(f"benchmark {name}: returned {type(made).__name__}, expected a Benchmark")
    return made


def sample(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The `limit` items (None: all) with the smallest content hashes, in the order of the data; a smaller sample is part of a larger one."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = set(sorted(range(len(items)), key=lambda place: (items[place].content, items[place].id))[:limit])
    return [item for place, item in enumerate(items) if place in chosen]


def data_hash(items: Sequence[Item]) -> str:
    """The hash of what is asked, whatever file it came from and in whatever order."""
    return digest(sorted([item.id, item.content] for item in items))


def field(record: dict[str, Any], name: str, where: str) -> str:
    """A field of a record that has to be there and be as `text_of` has it."""
    value = record.get(name)
    if value is None:
        raise UserError(f"{where}: field {name} is missing; there is {', '.join(sorted(record)) or 'nothing'}")
    return text_of(value, f"{where}: field {name}")


def text_of(value: Any, where: str) -> str:
    """A value that has to be text with more than spaces in it, or a number, which is taken as it is written."""
    text = str(value) if type(value) in (int, float) else value
    if not isinstance(text, str):
        raise UserError(f"{where}: expected text, got {kind(value)}")
    if not text.strip():
        raise UserError(f"{where} is empty")
    return text


class Names:
    """Names of records that bring none, by their content, so that they last in another order or file; one that is there again is numbered."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __call__(self, content: str, before: str = "") -> str:
        name = before + content[:12]
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name}-{self._counts[name]}"


def answer_of_another(items: Sequence[Item], place: int) -> str:
    """The reference reply of the next item whose answer is another one: a reply in the right form with a wrong answer."""
    own = items[place].expected.answer
    others = (items[(place + step) % len(items)] for step in range(1, len(items)))
    return next((other.reference for other in others if other.expected.answer != own), "")
