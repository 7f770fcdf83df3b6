"""Judges model-written functions without letting them at the machine.

`judge` runs a program and its tests in two sandboxed processes; `isolation` says what this machine gives, and `check`
refuses where that is nothing, unless the user allows it. It is no security boundary: see docs/sandbox.md.
"""

from mixsd.sandbox.isolation import Isolation, check, isolation
from mixsd.sandbox.judging import Judged, judge
from mixsd.sandbox.limits import Limits

__all__ = ["Isolation", "Judged", "Limits", "check", "isolation", "judge"]
