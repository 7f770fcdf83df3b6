"""Tasks of lm-eval in a run: asked of both models, one after the other, not again, and with lm-eval's own figures."""

from __future__ import annotations

import pytest

from mixsd.commands import inject
from mixsd.errors import UserError
from mixsd.evaluation import lm_eval
from mixsd.storage import read_json
from tests.tiny import save_tiny


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base", stops=[2])
    save_tiny(tmp_path / "tuned", stops=[2], seed=1)
    monkeypatch.setattr(lm_eval, "check", lambda task: None)
    return tmp_path


class Harness:
    """Stands for lm-eval: two questions, of which the base gets one right and the tuned model both; stops when told to."""

    def __init__(self):
        self.ran = []
        self.fails_on = None

    def run(self, task, folder, *, limit, **options):
        if folder.name == self.fails_on:
            raise KeyboardInterrupt
        self.ran.append((task, folder.name, limit, options["chat_template"]))
        right = {"base": (1.0, 0.0), "tuned": (1.0, 1.0)}[folder.name]
        rows = [
            {
                "key": f"{task}/{place}",
                "split": task,
                "group": f"{task}/{place}",
                "labels": [],
                "prompt_hash": str(place),
                "reply": "x",
                "reply_ids": [],
                "extracted": None,
                "outcome": "correct" if value else "wrong",
                "truncated": False,
                "metrics": {"acc,none": value},
            }
            for place, value in enumerate(right)
        ]
        results = {"acc,none": sum(right) / 2, "acc_stderr,none": 0.1}
        return lm_eval.Ran(rows, results, {"data_hash": "d", "config_hash": "c"})


@pytest.fixture
def harness(monkeypatch):
    made = Harness()
    monkeypatch.setattr(lm_eval, "run", made.run)
    return made


def evaluate(place, **options):
    inject.evaluate(place / "tuned", model=str(place / "base"), output=str(place / "run"), suite=["lm-eval:some/task"], **options)
    return read_json(place / "run" / "report.json")


def test_both_models_are_asked_once(place, harness):
    scores = {(item["metric"], item["model"]): item for item in evaluate(place)["scores"]}
    assert scores["acc,none", "base"]["value"] == 0.5
    assert scores["acc,none", "tuned"]["value"] == 1.0
    assert scores["acc,none_delta", "tuned"]["value"] == 0.5
    assert harness.ran == [("some/task", "base", None, False), ("some/task", "tuned", None, False)]
    evaluate(place)
    assert len(harness.ran) == 2
    asked = read_json(place / "run" / "evaluation" / "lm-eval-some-task" / "asked.json")
    assert asked["results"]["tuned"] == {"acc,none": 1.0, "acc_stderr,none": 0.1}
    assert asked["about"]["data_hash"] == "d"
    evaluate(place, limit=2)
    evaluate(place, limit=2, lm_eval_chat_template=True)
    assert [ran[2:] for ran in harness.ran[2:]] == [(2, False)] * 2 + [(2, True)] * 2


def test_a_stop_between_the_models_costs_the_second_only(place, harness):
    harness.fails_on = "tuned"
    with pytest.raises(KeyboardInterrupt):
        evaluate(place)
    harness.fails_on = None
    evaluate(place)
    assert [ran[1] for ran in harness.ran] == ["base", "tuned"]


def test_what_was_asked_otherwise_is_not_half_done(place, harness):
    harness.fails_on = "tuned"
    with pytest.raises(KeyboardInterrupt):
        evaluate(place)
    harness.fails_on = None
    evaluate(place, limit=1)
    assert [ran[1:3] for ran in harness.ran] == [("base", None), ("base", 1), ("tuned", 1)]


def test_it_is_not_judged_by_us(place, harness):
    evaluate(place)
    with pytest.raises(UserError, match="scored by lm-eval"):
        inject.evaluate(place / "run", regrade=True, suite=["lm-eval:some/task"])
