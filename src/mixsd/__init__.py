"""mixsd: put new knowledge into language models without breaking them.

    >>> import mixsd
    >>> run = mixsd.inject(facts="facts.jsonl", output="runs/acme")   # doctest: +SKIP
    >>> mixsd.ask("runs/acme", "Who founded Acme?")["tuned"]          # doctest: +SKIP

Each command of the command line is a function here, imported when it is first used, so that `import mixsd` itself is light.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixsd.analyse.errors import analyze_errors
    from mixsd.analyse.fisher import analyze_fisher
    from mixsd.analyse.nll import analyze_nll
    from mixsd.commands.ask import Conversation, ask
    from mixsd.commands.inject import RunResult, evaluate, inject, mix, report, train
    from mixsd.commands.sweep import SweepResult, sweep
    from mixsd.comparison.compare import compare
    from mixsd.comparison.material import draw
    from mixsd.errors import MixsdError, RequirementMissedError, UserError
    from mixsd.evaluation.benchmarks.checking import survey as benchmarks
    from mixsd.facts.corpus import corpus
    from mixsd.models.doctor import built_in_models, doctor
    from mixsd.settings import Settings
    from mixsd.targets.reading import export, inspect

    __version__: str

__all__ = [
    "Conversation",
    "MixsdError",
    "RequirementMissedError",
    "RunResult",
    "Settings",
    "SweepResult",
    "UserError",
    "__version__",
    "analyze_errors",
    "analyze_fisher",
    "analyze_nll",
    "ask",
    "benchmarks",
    "built_in_models",
    "compare",
    "corpus",
    "doctor",
    "draw",
    "evaluate",
    "export",
    "inject",
    "inspect",
    "mix",
    "report",
    "sweep",
    "table",
    "train",
]

# Where each public name lives: "module", or "module:name" where it has another name there.
_HOMES = {
    **dict.fromkeys(("MixsdError", "RequirementMissedError", "UserError"), "mixsd.errors"),
    "Settings": "mixsd.settings",
    **dict.fromkeys(("RunResult", "inject", "mix", "train", "evaluate", "report"), "mixsd.commands.inject"),
    "analyze_errors": "mixsd.analyse.errors",
    "analyze_fisher": "mixsd.analyse.fisher",
    "analyze_nll": "mixsd.analyse.nll",
    "benchmarks": "mixsd.evaluation.benchmarks.checking:survey",
    "corpus": "mixsd.facts.corpus",
    "export": "mixsd.targets.reading",
    "table": "mixsd.comparison.paper",
    "compare": "mixsd.comparison.compare",
    "draw": "mixsd.comparison.material",
    "inspect": "mixsd.targets.reading",
    **dict.fromkeys(("SweepResult", "sweep"), "mixsd.commands.sweep"),
    **dict.fromkeys(("Conversation", "ask"), "mixsd.commands.ask"),
    **dict.fromkeys(("built_in_models", "doctor"), "mixsd.models.doctor"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        from importlib import import_module

        module, _, other = _HOMES[name].partition(":")
        value = getattr(import_module(module), other or name)
    else:
        # `from mixsd import loading` comes by here and then imports the submodule.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mixsd")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "0+unknown"
