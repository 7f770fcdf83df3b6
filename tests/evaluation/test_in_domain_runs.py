"""A corpus through the whole pipeline: its tests travel in the run folder and are asked of both models, once."""

import json
import shutil
from pathlib import Path

import pytest

from mixsd.commands import inject
from mixsd.decoding import engine
from mixsd.errors import UserError
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.storage import read_json, read_jsonl
from tests.commands.test_inject import SMALL
from tests.conftest import FACTS
from tests.tiny import save_tiny, tiny_tokenizer

OPTIONS = {**SMALL, "facts": "kgfact:3x3", "max_new_tokens": 6, "verifier": None, "on_fail": "canonical", "retries": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"), stops=[2, *range(8, 262, 12)], max_position_embeddings=8192)


@pytest.fixture
def options(base, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    return {**OPTIONS, "model": str(base), "output": str(tmp_path / "run")}


class Sayer(Watcher):
    """Remembers what was said."""

    def __init__(self, said):
        self.said = said

    def say(self, text):
        self.said.append(text)


def save_short(folder, context):
    """A tiny model with learnt positions, of which there are no more than its context has."""
    from transformers import AutoModelForCausalLM, GPT2Config

    tokenizer = tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = [2, *range(8, 262, 12)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scores_of(folder):
    return {(s["suite"], s["split"], s["metric"], s["model"]): s["n"] for s in read_json(Run(folder).report_json)["scores"]}


def test_inject_a_corpus_by_name(options, tmp_path):
    run = inject.inject(**options).folder
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
    both = [
        [(r["key"], r["prompt_hash"]) for r in read_jsonl(run / "evaluation/in-domain" / f"{m}.jsonl")] for m in ("base", "tuned")
    ]
    assert both[0] == both[1]
    # The same command again does nothing; another seed of the corpus is another run.
    inject.inject(**options)
    with pytest.raises(UserError, match="corpus_seed"):
        inject.inject(**{**options, "corpus_seed": 1})


def test_a_folder_gives_what_the_name_gives(options, tmp_path):
    from mixsd.facts.corpus import corpus, write

    write(corpus("kgfact", "3x3", seed=7), tmp_path / "kg")
    by_name = inject.inject(**{**options, "corpus_seed": 7}).folder
    by_folder = inject.inject(**{**options, "facts": str(tmp_path / "kg"), "output": str(tmp_path / "other")}).folder
    for file in ("facts.jsonl", "splits/retrieval.jsonl", "evaluation/in-domain/tuned.jsonl", "targets.jsonl"):
        assert (by_name / file).read_bytes() == (by_folder / file).read_bytes()


def test_a_further_suite_generates_only_what_is_new(options, monkeypatch):
    """What `core` has asked already (the trained wording) is not asked again."""
    run = inject.inject(**{**options, "suite": ["core"]}).folder
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
    inject.evaluate(run, suite=["in-domain"])
    inject.report(run)
    assert {suite for suite, *_ in scores_of(run)} == {"core", "in-domain"}
    known, wanted = (
        {row["prompt_hash"] for row in read_jsonl(run / "evaluation" / suite / "base.jsonl")} for suite in ("core", "in-domain")
    )
    assert len(wanted) == 33
    assert len(wanted & known) >= 9  # the trained wording, and a paraphrase where both drew the same frame
    assert len(asked) == len(set(asked)) == 2 * len(wanted - known)
    before = list(asked)
    inject.evaluate(run, suite=["in-domain"])
    assert asked == before


def test_merged_shards_are_the_single_evaluation(options, tmp_path):
    run = inject.inject(**{**options, "suite": ["core"]}).folder
    twin = tmp_path / "twin"
    inject.inject(**{**options, "suite": ["core"], "output": str(twin)})
    inject.evaluate(run, suite=["in-domain"])
    for shard in ("2/2", "1/2"):
        inject.evaluate(twin, suite=["in-domain"], shard=shard)
    inject.evaluate(twin, suite=["in-domain"])
    for name in ("base", "tuned"):
        file = f"evaluation/in-domain/{name}.jsonl"
        assert (run / file).read_bytes() == (twin / file).read_bytes()
    assert not list((twin / "evaluation").glob("*.partial*"))


def test_the_corpus_says_how_it_is_asked_unless_the_user_does(options):
    """Its verifier, guidance and length of reply are in run.yaml; an option that was given goes before them."""
    small = {"temperature": 1.0, "retries": 0, "on_fail": "canonical"}
    values = {**options, **small, "facts": "kgfunc", "max_new_tokens": None}
    from mixsd.commands.opening import open_checked
    from mixsd.progress import Watcher
    from mixsd.settings import build

    settings = open_checked(build(values, "test"), Watcher()).settings
    assert (settings.verifier, settings.max_new_tokens) == ("number", 512)
    assert settings.guidance is not None
    assert "reference solution" in settings.guidance
    settings = open_checked(build({**values, "verifier": "contains", "max_new_tokens": 9}, "test"), Watcher()).settings
    assert (settings.verifier, settings.max_new_tokens) == ("contains", 9)


def test_an_unknown_suite_is_refused_before_anything_is_done(options, tmp_path):
    with pytest.raises(UserError, match=r'no such suite \(did you mean "in-domain"'):
        inject.inject(**{**options, "suite": ["in-domian"]})
    assert not (tmp_path / "run").exists()


def test_a_requirement_on_an_in_domain_test(options):
    from mixsd.errors import RequirementMissedError

    with pytest.raises(RequirementMissedError, match=r"retrieval>=0\.99"):
        inject.inject(**{**options, "require": ["retrieval>=0.99"]})
    report = json.loads((Path(options["output"]) / "report.json").read_text())
    assert report["requirements"][0]["value"] is not None


def test_a_requirement_on_what_is_not_measured_is_refused_before_anything_is_done(options, tmp_path):
    for wrong in ({"facts": "demo"}, {"suite": ["core"]}):
        with pytest.raises(UserError, match=r"--require 'retrieval>=0\.9': nothing is called 'retrieval'"):
            inject.inject(**{**options, **wrong, "require": ["retrieval>=0.9"]})
    with pytest.raises(UserError, match="nothing is called 'memorization'"):
        inject.inject(**{**options, "suite": ["in-domain"], "require": ["memorization>=0.9"]})
    assert not (tmp_path / "run").exists()


def own_corpus(folder):
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    (folder / "hard-2.jsonl").write_text('{"question": "Tell me where Ork is.", "answer": "Brisby"}\n')
    return folder


def test_a_test_of_ones_own_is_asked_and_may_be_required(options, tmp_path):
    run = inject.inject(
        **{**options, "facts": str(own_corpus(tmp_path / "own")), "suite": ["in-domain"], "require": ["hard-2>=0", "train>=0"]}
    ).folder
    assert scores_of(run)["in-domain", "hard-2", "accuracy", "tuned"] == 1
    assert [item["value"] for item in read_json(run / "report.json")["requirements"]] == [0.0, 0.0]


def test_facts_that_say_what_they_are_about_keep_their_replies(options, tmp_path):
    """A user's meta may have a `fact` of its own; it is no group, and the report finds each fact's reply."""
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps({**fact, "meta": {"fact": "history", "old_aliases": 3}}) + "\n" for fact in FACTS))
    run = inject.inject(**{**options, "facts": str(facts)}).folder
    assert {row["group"] for row in read_jsonl(run / "evaluation/core/base.jsonl")} >= {fact["id"] for fact in FACTS}
    page = (run / "report.html").read_text()
    replies = page[page.index("Fact by fact") : page.index('id="training"')]
    assert replies.count('class="reply"') == 2 * len(FACTS)


def test_tests_that_are_too_long_for_the_model_are_errors_and_said(options, tmp_path):
    """Learnt positions end at the context; there such a question would end the run, elsewhere it would be answered at random."""
    said = []
    model = save_short(tmp_path / "short", 400)
    run = inject.inject(**{**options, "model": str(model)}, watcher=Sayer(said)).folder
    assert "in-domain: 12 of 33 questions leave no room for a reply in the context of 400; they count as errors" in said
    found = {(s["split"], s["metric"]): s for s in read_json(run / "report.json")["scores"] if s["model"] == "tuned"}
    assert [found[split, "accuracy"]["n"] for split in ("train", "retrieval", "two_hop", "two_hop_context")] == [9, 0, 3, 0]
    assert found["retrieval", "error_share"]["value"] == 1
    # In shards too.
    twin = tmp_path / "twin"
    inject.inject(**{**options, "model": str(model), "suite": ["core"], "output": str(twin)})
    for shard in ("1/2", "2/2"):
        inject.evaluate(twin, suite=["in-domain"], shard=shard)
    inject.evaluate(twin, suite=["in-domain"])
    file = "evaluation/in-domain/tuned.jsonl"
    assert (run / file).read_bytes() == (twin / file).read_bytes()


def test_tests_or_facts_that_are_gone_are_missed_and_come_back(options, tmp_path):
    """Without a word, base and tuned would be asked less than the run promises."""
    run = inject.inject(**{**options, "suite": ["core"]}).folder
    before = {path.name: path.read_bytes() for path in (run / "splits").iterdir()}
    shutil.rmtree(run / "splits")
    with pytest.raises(UserError, match=r"splits: the corpus's tests are gone; the command that made the run writes them anew"):
        inject.evaluate(run, suite=["in-domain"])
    (run / "facts.jsonl").unlink()
    with pytest.raises(UserError, match=r"facts\.jsonl: the run's facts are gone"):
        inject.evaluate(run)
    inject.inject(**{**options, "suite": ["core"]})
    assert {path.name: path.read_bytes() for path in (run / "splits").iterdir()} == before
    inject.evaluate(run, suite=["in-domain"])


def test_a_run_from_before_a_setting_resumes_with_its_default(options):
    run = Run(inject.mix(**options).folder)
    run.manifest_file.write_text(run.manifest_file.read_text().replace("  corpus_seed: 0\n", ""))
    assert "corpus_seed" not in run.manifest()["settings"]
    inject.mix(**options)
    with pytest.raises(UserError, match="corpus_seed 0, the command says 1"):
        inject.mix(**{**options, "corpus_seed": 1})


def test_evaluating_any_model_on_a_corpus(options, base, tmp_path):
    """A model folder beside its base; run.yaml, which holds the corpus's own ways, says the same again."""
    tuned = save_tiny(tmp_path / "tuned", seed=1, stops=[2, *range(8, 262, 12)], max_position_embeddings=8192)
    given = {name: options[name] for name in ("facts", "model", "max_new_tokens", "forgetting_prompts", "forgetting_tokens")}
    run = inject.evaluate(tuned, **given, output=str(tmp_path / "run")).folder
    found = scores_of(run)
    assert found["in-domain", "two_hop", "accuracy_delta", "tuned"] == 3
    assert Run(run).settings().guidance
    before = (run / "evaluation/in-domain/tuned.jsonl").read_bytes()
    inject.evaluate(tuned, **Run(run).manifest()["settings"])
    assert (run / "evaluation/in-domain/tuned.jsonl").read_bytes() == before


def test_runs_beside_each_other_are_compared_in_the_suites_that_both_have(options, tmp_path):
    run = inject.inject(**options).folder
    other = inject.inject(**{**options, "method": "sft", "suite": ["core"], "output": str(tmp_path / "sft")}).folder
    beside = {(s["suite"], s["split"]) for s in inject.report(run, beside=[str(other)]).report()["beside"][0]["scores"]}
    assert {suite for suite, _ in beside} == {"core"}
    inject.report(other, beside=[str(run)])
    longer = inject.inject(**{**options, "facts": "kgfact:3x4", "suite": ["core"], "output": str(tmp_path / "long")}).folder
    with pytest.raises(UserError, match="was evaluated on another base model or other prompts"):
        inject.report(run, beside=[str(longer)])
