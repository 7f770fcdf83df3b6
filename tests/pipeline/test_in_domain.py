"""A corpus through the whole pipeline: its tests travel in the run folder and are asked of both models, once."""

import json
from pathlib import Path

import pytest

from mixsd.decoding import engine
from mixsd.errors import UserError
from mixsd.pipeline import commands
from mixsd.pipeline.run import Run
from mixsd.storage import read_json, read_jsonl
from tests.pipeline.test_inject import SMALL
from tests.tiny import save_tiny

OPTIONS = {**SMALL, "facts": "kgfact:3x3", "max_new_tokens": 6, "verifier": None, "on_fail": "canonical", "retries": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"), stops=[2, *range(8, 262, 12)], max_position_embeddings=8192)


@pytest.fixture
def options(base, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    return {**OPTIONS, "model": str(base), "output": str(tmp_path / "run")}


def scores_of(folder):
    return {(s["suite"], s["split"], s["metric"], s["model"]): s["n"] for s in read_json(Run(folder).report_json)["scores"]}


def test_inject_a_corpus_by_name(options, tmp_path):
    run = commands.inject(**options).folder
    assert sorted(path.name for path in (run / "splits").iterdir()) == [
        "corpus.json",
        *sorted(f"{name}.jsonl" for name in ("paraphrase", "validation", "retrieval", "two_hop", "two_hop_context")),
    ]
    found = scores_of(run)
    for split, n in {"train": 9, "paraphrase": 9, "retrieval": 9, "two_hop": 3, "two_hop_context": 3}.items():
        for model in ("base", "tuned"):
            assert found["in-domain", split, "accuracy", model] == n
        assert found["in-domain", split, "accuracy_delta", "tuned"] == n
    assert found["in-domain", "retrieval/domains Person-Location", "accuracy", "tuned"] == 3
    assert any(split.startswith("train/relation ") for _, split, _, _ in found)
    assert found["core", "memorization/trained", "accuracy", "tuned"] == 9
    page = (run / "report.html").read_text()
    assert "in-domain: retrieval" in page
    assert "The facts as a graph" in page
    both = [
        [(r["key"], r["prompt_hash"]) for r in read_jsonl(run / "evaluation/in-domain" / f"{m}.jsonl")] for m in ("base", "tuned")
    ]
    assert both[0] == both[1]
    # The same command again does nothing; another seed of the corpus is another run.
    commands.inject(**options)
    with pytest.raises(UserError, match="corpus_seed"):
        commands.inject(**{**options, "corpus_seed": 1})


def test_a_folder_gives_what_the_name_gives(options, tmp_path):
    from mixsd.corpora.corpus import write
    from mixsd.corpora.making import corpus

    write(corpus("kgfact", "3x3", seed=7), tmp_path / "kg")
    by_name = commands.inject(**{**options, "corpus_seed": 7}).folder
    by_folder = commands.inject(**{**options, "facts": str(tmp_path / "kg"), "output": str(tmp_path / "other")}).folder
    for file in ("facts.jsonl", "splits/retrieval.jsonl", "evaluation/in-domain/tuned.jsonl", "targets.jsonl"):
        assert (by_name / file).read_bytes() == (by_folder / file).read_bytes()


def test_a_further_suite_generates_only_what_is_new(options, monkeypatch):
    """What `core` has asked already (the trained wording) is not asked again."""
    run = commands.inject(**{**options, "suite": ["core"]}).folder
    assert {suite for suite, *_ in scores_of(run)} == {"core"}
    asked = []
    decode = engine.decode

    def watched(model, take, *arguments, **others):
        def counted():
            if (request := take()) is not None:
                asked.append(request.key)
            return request

        return decode(model, counted, *arguments, **others)

    monkeypatch.setattr(engine, "decode", watched)
    commands.evaluate(run, suite=["in-domain"])
    commands.report(run)
    assert {suite for suite, *_ in scores_of(run)} == {"core", "in-domain"}
    known, wanted = (
        {row["prompt_hash"] for row in read_jsonl(run / "evaluation" / suite / "base.jsonl")} for suite in ("core", "in-domain")
    )
    assert len(wanted) == 33
    assert len(wanted & known) >= 9  # the trained wording, and a paraphrase where both drew the same frame
    assert len(asked) == len(set(asked)) == 2 * len(wanted - known)
    before = list(asked)
    commands.evaluate(run, suite=["in-domain"])
    assert asked == before


def test_merged_shards_are_the_single_evaluation(options, tmp_path):
    run = commands.inject(**{**options, "suite": ["core"]}).folder
    twin = tmp_path / "twin"
    commands.inject(**{**options, "suite": ["core"], "output": str(twin)})
    commands.evaluate(run, suite=["in-domain"])
    for shard in ("2/2", "1/2"):
        commands.evaluate(twin, suite=["in-domain"], shard=shard)
    commands.evaluate(twin, suite=["in-domain"])
    for name in ("base", "tuned"):
        file = f"evaluation/in-domain/{name}.jsonl"
        assert (run / file).read_bytes() == (twin / file).read_bytes()
    assert not list((twin / "evaluation").glob("*.partial*"))


def test_the_corpus_says_how_it_is_asked_unless_the_user_does(options):
    """Its verifier, guidance and length of reply are in run.yaml; an option that was given goes before them."""
    small = {"temperature": 1.0, "retries": 0, "on_fail": "canonical"}
    values = {**options, **small, "facts": "kgfunc", "max_new_tokens": None}
    from mixsd.pipeline.session import preview
    from mixsd.progress import Watcher
    from mixsd.settings import build

    settings = preview(build(values, "test"), Watcher()).settings
    assert (settings.verifier, settings.max_new_tokens) == ("number", 512)
    assert settings.guidance is not None
    assert "reference solution" in settings.guidance
    settings = preview(build({**values, "verifier": "contains", "max_new_tokens": 9}, "test"), Watcher()).settings
    assert (settings.verifier, settings.max_new_tokens) == ("contains", 9)


def test_an_unknown_suite_is_refused_before_anything_is_done(options, tmp_path):
    with pytest.raises(UserError, match=r'no such suite \(did you mean "in-domain"'):
        commands.inject(**{**options, "suite": ["in-domian"]})
    assert not (tmp_path / "run").exists()


def test_a_requirement_on_an_in_domain_test(options):
    from mixsd.errors import RequirementMissedError

    with pytest.raises(RequirementMissedError, match=r"retrieval>=0\.99"):
        commands.inject(**{**options, "require": ["retrieval>=0.99"]})
    report = json.loads((Path(options["output"]) / "report.json").read_text())
    assert report["requirements"][0]["value"] is not None
