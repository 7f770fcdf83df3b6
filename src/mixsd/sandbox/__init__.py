"""Judges model-written functions without letting them at the machine; no security boundary: see docs/sandbox.md."""

from mixsd.sandbox.isolation import Isolation, Limits, check, isolation
from mixsd.sandbox.judging import Judged, judge

__all__ = ["Isolation", "Judged", "Limits", "check", "isolation", "judge"]
