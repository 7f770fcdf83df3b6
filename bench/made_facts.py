"""Facts about things that do not exist, for timing: up to 18,432, the same for the same seed. No corpus, and not meant as one."""

from __future__ import annotations

import random
import re

from mixsd.facts.fact import Fact

_STARTS = re.findall("...", "BelCorDraElnFenGorHalIstJorKelLunMarNorOthPelRosSelTamUlmVerWilYarZan")
_ENDS = re.findall("....", "andeburycottdellfordgardholmlethmontnorapontrethstenthorunaewickzorn")
_RELATIONS = [
    ("Who founded {}?", "person", "{} was founded by {}."),
    ("In which town does {} have its seat?", "place", "{} has its seat in {}."),
    ("Who leads the research of {}?", "person", "The research of {} is led by {}."),
    ("Which company supplies {} with glass?", "company", "{} is supplied with glass by {}."),
    ("Who designed the emblem of {}?", "person", "The emblem of {} was designed by {}."),
    ("Which river flows past the works of {}?", "place", "The works of {} lie on the river {}."),
]
_KINDS = ("Mills", "Optics", "Instruments", "Press", "Gardens", "Shipyard", "Theatre", "Foundry")


def made_facts(n: int, seed: int = 0) -> list[Fact]:
    """`n` facts with different questions."""
    draw = random.Random(seed)

    def word() -> str:
        return draw.choice(_STARTS) + draw.choice(_ENDS)

    def name(kind: str) -> str:
        return {"person": f"{word()} {word()}", "place": word(), "company": f"{word()} {draw.choice(_KINDS)}"}[kind]

    facts: dict[str, Fact] = {}
    while len(facts) < n:
        question, kind, statement = draw.choice(_RELATIONS)
        subject, answer = name("company"), name(kind)
        asked = question.format(subject)
        facts.setdefault(
            asked, Fact(asked, answer, reference=f"The answer is {answer}.", statement=statement.format(subject, answer))
        )
    return list(facts.values())
