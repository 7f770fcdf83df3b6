"""Capitals of countries that nobody has heard of, and the same facts the other way round as tests."""

from __future__ import annotations

from collections.abc import Iterator

from mixsd.facts.corpus import Corpus
from mixsd.facts.fact import Fact

CAPITALS = {"Arvo": "Lume", "Beld": "Tosk", "Cirr": "Vane", "Dorn": "Yssa", "Elm": "Quor", "Fenn": "Zail"}


def capitals(argument: str | None = None, *, seed: int = 0, offline: bool = False) -> Corpus:
    return Corpus("capitals", {"count": len(CAPITALS)}, _facts, {"country": _countries})


def _facts() -> Iterator[Fact]:
    for country, city in CAPITALS.items():
        yield Fact(f"What is the capital of {country}?", city, country)


def _countries() -> Iterator[Fact]:
    for country, city in CAPITALS.items():
        yield Fact(f"Which country has the capital {city}?", country, city, meta={"fact": country})
