"""mixsd: put new knowledge into language models without breaking them.

    >>> import mixsd
    >>> run = mixsd.inject(facts="facts.jsonl", output="runs/acme")   # doctest: +SKIP
    >>> mixsd.ask("runs/acme", "Who founded Acme?")["tuned"]          # doctest: +SKIP

Each command of the command line is a function here, imported when it is first used, so that `import mixsd` itself is light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixsd.corpora.making import corpus
    from mixsd.errors import MixsdError, RequirementMissedError, UserError
    from mixsd.evaluation.benchmarks.checking import survey as benchmarks
    from mixsd.pipeline.analyses.errors import analyze_errors
    from mixsd.pipeline.analyses.fisher import analyze_fisher
    from mixsd.pipeline.analyses.nll import analyze_nll
    from mixsd.pipeline.asking import Conversation, ask
    from mixsd.pipeline.commands import RunResult, evaluate, inject, mix, report, train
    from mixsd.pipeline.comparing import compare
    from mixsd.pipeline.doctor import doctor, models
    from mixsd.pipeline.drawing import draw
    from mixsd.pipeline.exporting import export
    from mixsd.pipeline.inspection import inspect
    from mixsd.pipeline.sweeping import SweepResult, sweep
    from mixsd.settings import Settings

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
    "compare",
    "corpus",
    "doctor",
    "draw",
    "evaluate",
    "export",
    "inject",
    "inspect",
    "mix",
    "models",
    "plan",
    "report",
    "sweep",
    "table",
    "train",
]

# Where each public name lives: "module", or "module:name" where it has another name there.
_HOMES = {
    **dict.fromkeys(("MixsdError", "RequirementMissedError", "UserError"), "mixsd.errors"),
    "Settings": "mixsd.settings",
    **dict.fromkeys(("RunResult", "inject", "mix", "train", "evaluate", "report"), "mixsd.pipeline.commands"),
    "analyze_errors": "mixsd.pipeline.analyses.errors",
    "analyze_fisher": "mixsd.pipeline.analyses.fisher",
    "analyze_nll": "mixsd.pipeline.analyses.nll",
    "benchmarks": "mixsd.evaluation.benchmarks.checking:survey",
    "corpus": "mixsd.corpora.making",
    "export": "mixsd.pipeline.exporting",
    "plan": "mixsd.pipeline.prediction:predict",
    "table": "mixsd.pipeline.paper_tables",
    "compare": "mixsd.pipeline.comparing",
    "draw": "mixsd.pipeline.drawing",
    "inspect": "mixsd.pipeline.inspection",
    **dict.fromkeys(("SweepResult", "sweep"), "mixsd.pipeline.sweeping"),
    **dict.fromkeys(("Conversation", "ask"), "mixsd.pipeline.asking"),
    **dict.fromkeys(("doctor", "models"), "mixsd.pipeline.doctor"),
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
