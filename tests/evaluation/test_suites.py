"""The suite `core`: same questions for both models, free generation judged whole, forgetting as Eq. 2 defines it."""

import math

import pytest
import torch

from mixsd import statistics
from mixsd.evaluation import questions, suites
from mixsd.evaluation.questions import Answerer, Material, Prompt, ask
from mixsd.evaluation.scores import compare
from mixsd.facts.answers import Expected, Verdict, get_verifier
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer
from mixsd.facts.records import bundled_records
from mixsd.randomness import uniforms
from mixsd.settings import Settings
from tests.tiny import tiny_model, tiny_tokenizer

FACTS = [
    Fact("Who runs Ottermoss?", "Ann Lee", paraphrases=("Ottermoss is run by whom?", "Its boss?", "Its head?")),
    Fact("Where is Ottermoss?", "Kell"),
]
SETTINGS = Settings(max_new_tokens=6, forgetting_prompts=3, probe_questions=9, forgetting_tokens=7).resolved


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer):
    return {name: tiny_model(vocab=len(tokenizer), seed=seed, dtype=torch.float32) for name, seed in (("base", 0), ("tuned", 1))}


def renderer_of(tokenizer, model):
    return Renderer(tokenizer, model.config, model.generation_config)


def answerer(model, path, name="m", **options):
    return Answerer(lambda: model, model_hash=name, precision="cpu/float32", stops={2: 2}, journal=path, **options)


def test_core_on_two_models(tokenizer, models, tmp_path):
    renderer = renderer_of(tokenizer, models["base"])
    base, tuned = (answerer(models[name], tmp_path / name, name) for name in ("base", "tuned"))
    references = suites.sample_references(renderer, SETTINGS, base)
    verifier = get_verifier("contains")
    rows = {
        name: ask(suites.questions("core", Material(FACTS, {}, (), renderer, SETTINGS, verifier)), renderer, by)
        + suites.forgetting(by, renderer, references)
        for name, by in (("base", base), ("tuned", tuned))
    }
    assert [row["key"] for row in rows["base"]] == [row["key"] for row in rows["tuned"]]
    assert [row["prompt_hash"] for row in rows["base"]] == [row["prompt_hash"] for row in rows["tuned"]]
    assert [row["split"] for row in rows["base"]].count(suites.TRAINED) == 2
    trained = [row["question"] for row in rows["tuned"] if row["split"] == suites.TRAINED]
    assert trained == [renderer.question(fact.question) for fact in FACTS]
    assert [row["split"] for row in rows["base"]].count(suites.PARAPHRASE) == 4
    assert all(len(row["reply_ids"]) <= 6 or row["split"] != suites.TRAINED for row in rows["base"])

    # Eq. 2 from its definition: dense logits, one reply at a time.
    general = {item["id"]: renderer.ids(item["prompt"]) for item in bundled_records("general_prompts.jsonl")}
    total = dict.fromkeys(models, 0.0)
    tokens = 0
    for key, reply in references.items():
        tokens += len(reply.ids)
        for name, model in models.items():
            with torch.no_grad():
                logits = model(torch.tensor([general[key] + reply.ids])).logits[0, len(general[key]) - 1 : -1]
            total[name] -= float(torch.log_softmax(logits.double(), -1).gather(-1, torch.tensor(reply.ids)[:, None]).sum())
    scores = {(s["split"], s["metric"], s["model"]): s for s in compare("core", rows["base"], rows["tuned"])}
    forgetting = scores[suites.FORGETTING, "forgetting", "tuned"]
    assert forgetting["value"] == pytest.approx((total["tuned"] - total["base"]) / tokens, abs=1e-4)
    assert scores[suites.FORGETTING, "reference_nll", "base"]["value"] == pytest.approx(total["base"] / tokens, abs=1e-4)
    assert forgetting["value"] > 0
    assert forgetting["n"] == 3
    assert all(score["n"] > 0 and score["low"] <= score["value"] <= score["high"] for score in scores.values())


def test_nothing_is_generated_twice_and_resume_is_exact(tokenizer, models, tmp_path, monkeypatch):
    renderer = renderer_of(tokenizer, models["base"])
    path = tmp_path / "journal"
    prompts = [Prompt(str(i), renderer.ids(f"Question {i}?"), 8) for i in range(7)]
    wanted = answerer(models["base"], path).replies(prompts)
    whole = path.read_bytes()
    assert whole.count(b'"ids"') == 7
    path.write_bytes(whole[: len(whole) // 2])
    kept = whole[: len(whole) // 2].count(b"}\n") - 1  # the first line says how they were decoded

    done = []
    assert answerer(models["base"], path, token_budget=500, on_done=done.append).replies(prompts) == wanted
    assert done[0] == kept
    addresses = [line for line in path.read_bytes().splitlines() if line.endswith(b"}") and b'"ids"' in line]
    assert len(addresses) == 7

    finished = Answerer(lambda: pytest.fail("loaded"), model_hash="m", precision="cpu/float32", stops={2: 2}, journal=path)
    assert finished.replies(prompts) == wanted


def test_the_longest_prompts_are_answered_first(models, tmp_path, monkeypatch):
    asked = []
    decode_all = questions.decode_all

    def recorded(model, requests, *rest, **options):
        asked.append([len(request.naive_ids) for request in requests])
        return decode_all(model, requests, *rest, **options)

    monkeypatch.setattr(questions, "decode_all", recorded)
    prompts = [Prompt(str(n), [3] * n, 2) for n in (4, 9, 2, 7)]
    prompts += [Prompt(f"sampled {n}", [3] * n, 2, uniforms(0, "forgetting", "x", n=2), str(n)) for n in (5, 6)]
    found = answerer(models["base"], tmp_path / "j").replies(prompts)
    assert asked == [[9, 7, 4, 2], [6, 5]]
    assert list(found) == [prompt.key for prompt in prompts]


def test_a_reply_that_was_decoded_in_another_way_is_another_reply(tokenizer, models, tmp_path, monkeypatch):
    """It shows when something has to be decoded: then nothing is taken from what was decoded otherwise."""
    prompts = [Prompt(key, tokenizer.encode(key, add_special_tokens=False), 3) for key in ("ab", "cd", "ef")]
    path = tmp_path / "replies.jsonl"
    for way, count, made in (("packed", 1, 1), ("packed", 2, 2), ("lock-step: of this test", 3, 5), ("packed", 3, 5)):
        monkeypatch.setattr(questions, "decoding_path", lambda model, way=way: way)
        answers = answerer(models["base"], path, "m")
        answers.replies(prompts[:count])
        answers.close()
        assert path.read_text().count('"ids"') == made
    assert answers.path == "lock-step: of this test, torch", "a whole journal needs no model, and says how it was decoded"


@pytest.mark.parametrize("change", [{"model_hash": "other"}, {"precision": "cuda/bfloat16"}, {"stops": {2: 2, 5: 5}}])
def test_another_model_precision_or_stop_is_another_reply(tokenizer, models, tmp_path, change):
    renderer = renderer_of(tokenizer, models["base"])
    prompt = Prompt("q", renderer.ids("Question?"), 4)
    options = {"model_hash": "m", "precision": "cpu/float32", "stops": {2: 2}}
    Answerer(lambda: models["base"], journal=tmp_path / "j", **options).replies([prompt])
    Answerer(lambda: models["base"], journal=tmp_path / "j", **{**options, **change}).replies([prompt])
    assert (tmp_path / "j").read_bytes().count(b'"ids"') == 2


def test_sampled_replies_are_addressed(tokenizer, models, tmp_path):
    renderer = renderer_of(tokenizer, models["base"])
    few = SETTINGS
    many = SETTINGS.model_copy(update={"forgetting_prompts": 6})
    a = suites.sample_references(renderer, few, answerer(models["base"], tmp_path / "a", token_budget=400))
    b = suites.sample_references(renderer, many, answerer(models["base"], tmp_path / "b", token_budget=1000))
    assert all(b[key] == reply for key, reply in a.items())
    other = suites.sample_references(renderer, few.model_copy(update={"seed": 1}), answerer(models["base"], tmp_path / "a"))
    assert [reply.ids for reply in other.values()] != [reply.ids for reply in a.values()]
    assert not math.isclose(uniforms(0, "forgetting", "x", n=1)[0], uniforms(0, "noise", "x", n=1)[0])


def test_paraphrases_are_the_facts_own_or_reported_frames():
    own, framed = FACTS
    assert suites.paraphrases(own, SETTINGS) == ["Ottermoss is run by whom?", "Its boss?"]
    reported = suites.paraphrases(framed, SETTINGS)
    assert len(set(reported)) == 2
    assert all(framed.question in text for text in reported)
    validation = suites.framed(framed, SETTINGS.seed, "validation")
    assert len(validation) == 10
    assert not set(validation) & set(suites.paraphrases(framed, SETTINGS.model_copy(update={"paraphrases": 10})))


def rows_of(outcomes, split=suites.TRAINED):
    return [
        {
            "key": f"{split}/{i}",
            "split": split,
            "group": str(i),
            "labels": [],
            "prompt_hash": str(i),
            "outcome": o,
            "truncated": False,
        }
        for i, o in enumerate(outcomes)
    ]


def score_of(rows, metric="accuracy"):
    (score,) = [s for s in compare("core", rows, None) if s["metric"] == metric]
    return score


def test_accuracy_counts_all_but_our_own_errors():
    score = score_of(rows_of(["correct", "wrong", "unparseable", "error", "correct"]))
    assert (score["value"], score["n"]) == (0.5, 4)
    assert score_of(rows_of(["correct", "error"]), "error_share")["value"] == 0.5


def test_two_of_three_tokens_right_score_nothing():
    """Pitfall 15: the headline is a whole answer in a free reply."""
    verdict = get_verifier("contains")("The mascot is Old Barnaby", Expected("Old Barnaby Crane"))
    assert verdict.outcome == "wrong"


def test_a_lookup_table_scores_on_the_trained_wording_only(tokenizer):
    """Pitfall 16: knowing the exact question is not knowing the fact."""
    table = {fact.question: fact.answer for fact in FACTS}
    renderer = renderer_of(tokenizer, tiny_model(vocab=len(tokenizer)))
    material = Material(FACTS, {}, (), renderer, SETTINGS, get_verifier("contains"))
    asked = [q for q in suites.questions("core", material) if q.split != suites.PROBE]
    rows = []
    for question in asked:
        outcome = question.verifier(table.get(question.user, "No idea."), question.expected).outcome
        rows.append(
            {
                "key": question.key,
                "split": question.split,
                "group": question.group,
                "labels": [],
                "prompt_hash": question.key,
                "outcome": outcome,
                "truncated": False,
            }
        )
    values = {s["split"]: s["value"] for s in compare("core", rows, None) if s["metric"] == "accuracy"}
    assert values == {suites.TRAINED: 1.0, suites.PARAPHRASE: 0.0}


def test_interval_of_paraphrases_counts_facts():
    rows = rows_of(["correct"] * 30, suites.PARAPHRASE)
    for i, row in enumerate(rows):
        row["group"] = str(i // 3)
    grouped = score_of(rows)
    assert grouped["n"] == 30
    assert grouped["low"] == pytest.approx(statistics.proportion(10, 10).low)


def test_models_asked_different_things_are_not_compared():
    other = rows_of(["correct"])
    other[0]["prompt_hash"] = "changed"
    with pytest.raises(ValueError, match="same prompts"):
        compare("core", rows_of(["correct"]), other)


def test_paired_delta():
    before, after = rows_of(["correct", "correct", "wrong", "error"]), rows_of(["correct", "wrong", "wrong", "correct"])
    (delta,) = [s for s in compare("core", before, after) if s["metric"] == "accuracy_delta"]
    assert (delta["value"], delta["n"]) == (pytest.approx(-1 / 3), 3)


def test_every_probe_answer_is_accepted_by_its_own_verifier():
    for item in bundled_records("probe.jsonl"):
        judge = get_verifier(item.get("verifier", "contains"))
        assert judge(item["answer"], Expected(item["answer"])) == Verdict(
            "correct", judge(item["answer"], Expected(item["answer"])).extracted
        )
