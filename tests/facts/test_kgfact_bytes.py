"""KGFact writes the same bytes everywhere: in any order, on every run, and from one version to the next."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from mixsd.facts import corpus as facts_corpus
from mixsd.facts.fact import to_json
from mixsd.facts.kgfact import kgfact
from tests.facts.kgfact_world import SPLITS, made
from tests.facts.world_checker import load

# The bytes of `kgfact("small")`. They may change only when somebody means to change a text (relations, endings, frames, the wording of
# a background), how names and edges are drawn, or which fields are written; then no earlier score on KGFact is comparable, and the
# changelog has to say so. A new version of a library or another machine is no reason.
GOLDEN = "01eaefa06c6c0d65c4cc537155bdfe4f"


def digest(folder: Path) -> str:
    """A hash of the bytes of all files of a corpus, with their names."""
    files = sorted(folder.iterdir())
    return hashlib.blake2b(b"".join(file.name.encode() + b"\n" + file.read_bytes() for file in files), digest_size=16).hexdigest()


def test_what_is_written_is_what_is_streamed_in_any_order_and_as_often_as_asked(tmp_path: Path) -> None:
    corpus = kgfact("3x4", seed=9)
    next(corpus.splits["two_hop_context"]())
    for name in reversed(SPLITS):
        assert [to_json(fact) for fact in corpus.splits[name]()] == made("3x4", 9)[name]
    counts = facts_corpus.write(corpus, tmp_path / "kg")
    assert counts == {"train": 12, "paraphrase": 12, "validation": 12, "retrieval": 12, "two_hop": 4, "two_hop_context": 4}
    assert load(tmp_path / "kg") == made("3x4", 9)
    assert list(facts_corpus.read(tmp_path / "kg").facts()) == list(corpus.facts())


def test_a_seed_decides_everything_and_another_one_changes_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        facts_corpus.write(kgfact(seed=seed), tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    answers = [{row["answer"] for rows in made(None, seed).values() for row in rows} for seed in (0, 1)]
    assert answers[0].isdisjoint(answers[1])
    assert kgfact(seed=0).identity == kgfact("small").identity != kgfact(seed=1).identity


def test_the_bytes_of_the_small_corpus_have_not_changed(tmp_path: Path) -> None:
    facts_corpus.write(kgfact("small"), tmp_path / "kg")
    (tmp_path / "kg" / "corpus.json").unlink()  # says how it is judged, too, which is no part of its content
    assert digest(tmp_path / "kg") == GOLDEN


def test_the_hash_seed_is_of_no_matter(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from mixsd.facts import corpus, kgfact; "
    code += "corpus.write(kgfact.kgfact('5x4', seed=2), Path(sys.argv[1]))"
    facts_corpus.write(kgfact("5x4", seed=2), tmp_path / "here")
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / salt)], check=True, env=environment)
        assert digest(tmp_path / salt) == digest(tmp_path / "here")
