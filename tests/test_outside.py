"""What is defined outside of mixsd (tests/outside/toy_package) and named on the command line is treated like what mixsd brings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixsd.cli import entry
from mixsd.commands.sweep import read_sweep
from mixsd.errors import UserError
from mixsd.facts.corpus import TRAIN
from mixsd.methods import get_method, known_method
from mixsd.run.engines import LOG
from mixsd.settings import Settings
from mixsd.storage import read_json, read_jsonl, write_jsonl
from mixsd.training.examples import plan_epoch
from tests.tiny import save_tiny

OUTSIDE = Path(__file__).parent / "outside"
METHOD, BENCHMARK = "toy_package.method:WEIGHTED", "toy_package.bench:letters"
CORPUS, ENGINE = "toy_package.corpus:capitals", "toy_package.engine:connect"
TITLE, BENCHMARK_TITLE = "Weighted MixSD, mixed targets whose first token weighs more", "Letters of Words"
LOSS = "NLL of the target's tokens, the first one three times"

SMALL = (
    "--offline --on-fail canonical --retries 2 --max-new-tokens 8 --epochs 2 --batch-size 4 --warmup-steps 0 --lr 1e-3 --lam 0.5 "
    "--forgetting-prompts 3 --forgetting-tokens 4 --probe-questions 3 --paraphrases 1 --benchmark-tokens 6 --verifier regex:[aeiou]"
).split()


@pytest.fixture(scope="module")
def outside() -> Iterator[pytest.MonkeyPatch]:
    """The folder of the toy package on the path of this process, and of those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OUTSIDE))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(OUTSIDE), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("COLUMNS", "200")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        yield patch


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, outside: pytest.MonkeyPatch) -> Path:
    """Two finished runs on the toy corpus, by the toy method and by sft, both asked the toy benchmark."""
    folder = tmp_path_factory.mktemp("outside")
    outside.setenv("MIXSD_CACHE", str(folder / "cache"))
    save_tiny(folder / "base", stops=[2, *range(8, 262, 12)])
    write_jsonl(folder / "data" / "letters" / "test.jsonl", ({"word": word} for word in ("a", "to", "cat", "moon")))
    asked = ["--data", str(folder / "data"), "--suite", BENCHMARK]
    run = ["inject", CORPUS, "--model", str(folder / "base"), *SMALL]
    assert entry.run([*run, "--output", str(folder / "weighted"), "--method", METHOD]) == 0
    assert entry.run(["evaluate", str(folder / "weighted"), *asked]) == 0
    assert entry.run(["report", str(folder / "weighted")]) == 0
    asked += ["--suite", "core", "--suite", "in-domain"]
    assert entry.run([*run, "--output", str(folder / "sft"), "--method", "sft", *asked]) == 0
    return folder


@pytest.fixture
def mixsd(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that succeeds, and return what it wrote to the terminal."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert entry.run([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return call


def scores(run: Path, suite: str) -> list[dict[str, Any]]:
    return [item for item in read_json(run / "report.json")["scores"] if item["suite"] == suite]


def test_a_method_trains_by_its_own_objective_and_is_told_by_its_title(place: Path) -> None:
    run = place / "weighted"
    report = read_json(run / "report.json")
    assert (report["method"], report["settings"]["method"]) == ("weighted", METHOD)
    for text in ((run / "report.html").read_text(), (run / "model" / "README.md").read_text()):
        assert TITLE in text
        assert LOSS in text.replace("&#39;", "'")
    assert "arxiv" not in (run / "model" / "README.md").read_text().partition("## Method")[2].partition("## Scores")[0]
    losses = [row["loss"] for row in read_jsonl(run / "log.jsonl") if row.get("event") == "step"]
    targets = [row for row in read_jsonl(run / "targets.jsonl") if row["accepted"]]
    first = plan_epoch(0, 0, [f"{row['id']}/{row['sample']}" for row in targets], 4)[0]
    nll = [[-value for value in targets[item]["base_logprobs"]] for item in first]
    weighted = sum(sum(own) + 2 * own[0] for own in nll) / sum(map(len, nll))
    assert losses[0] == pytest.approx(weighted, abs=1e-3)


def test_a_method_brings_its_defaults_and_a_short_name(outside: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(method=METHOD)
    assert (settings.lam, Settings(method=METHOD, lam=0.1).lam) == (0.5, 0.1)
    assert (settings.spec.mixes, settings.spec.needs_targets, settings.spec.on_policy) == (True, True, False)
    assert (settings.spec.label, settings.spec.title) == ("Weighted MixSD", TITLE)
    sweep = {"output": str(tmp_path), "settings": {"facts": "demo"}, "runs": [{"method": METHOD, "lam": [0.1, 0.2]}]}
    assert [run.name for run in read_sweep(sweep).runs] == ["weighted-lam0.1-s0", "weighted-lam0.2-s0"]


def test_a_method_is_compared_by_its_name(place: Path, mixsd: Callable[..., str], tmp_path: Path) -> None:
    out = mixsd("compare", place / "weighted", place / "sft", "--output", tmp_path)
    assert "weighted" in out
    assert BENCHMARK_TITLE in out
    found = read_json(tmp_path / "compare.json")
    assert {(item["label"], item["method"]) for item in found["configurations"]} == {("sft", "sft"), ("weighted", METHOD)}
    assert "lam" in next(item for item in found["configurations"] if item["label"] == "weighted")["settings"]
    assert f"{BENCHMARK}/{BENCHMARK}" in {pair["measure"] for pair in found["paired"]}
    for name in ("compare.html", "compare.md"):
        text = (tmp_path / name).read_text().replace("\\", "")
        assert f"weighted: {TITLE} ({METHOD})." in text
        assert BENCHMARK_TITLE in text


def test_a_benchmark_is_asked_scored_and_told_by_its_title(place: Path, mixsd: Callable[..., str]) -> None:
    run = place / "sft"
    assert {(item["split"], item["n"]) for item in scores(run, BENCHMARK) if item["metric"] == "accuracy"} == {(BENCHMARK, 4)}
    page, card = (run / "report.html").read_text(), (run / "model" / "README.md").read_text()
    for text in (page, card, mixsd("report", run)):
        assert BENCHMARK_TITLE in text
    assert f"{BENCHMARK_TITLE}: all 4 questions" in card
    assert f"| {BENCHMARK_TITLE} | sft | 4 |" in card  # how its replies ended
    assert "How many letters has &#39;moon&#39;?" in page


def test_a_benchmark_can_be_required(place: Path, mixsd: Callable[..., str]) -> None:
    mixsd("report", place / "sft", "--require", "letters>=0")
    assert read_json(place / "sft" / "report.json")["requirements"] == [
        {"text": "letters>=0", "value": next(item["value"] for item in scores(place / "sft", BENCHMARK)
                                            if (item["metric"], item["model"]) == ("accuracy", "tuned")), "passed": True}
    ]  # fmt: skip


def test_a_benchmark_is_listed_and_its_judge_checked(place: Path, mixsd: Callable[..., str]) -> None:
    data = ("--data", place / "data")
    assert f"letters    {BENCHMARK_TITLE}       4 published   4 in {place}/data/letters\n" in mixsd(
        "benchmarks", *data, "--suite", BENCHMARK
    )
    listed = json.loads(mixsd("benchmarks", *data, "--suite", BENCHMARK, "--json"))
    assert [(item["name"], item["title"]) for item in listed][-2:] == [("mmlu", "MMLU"), ("letters", BENCHMARK_TITLE)]
    assert mixsd("benchmarks", "check", BENCHMARK, *data).startswith(f"{BENCHMARK_TITLE}: 4 items")


def test_a_corpus_brings_its_facts_and_tests(place: Path, mixsd: Callable[..., str]) -> None:
    assert [fact["answer"] for fact in read_jsonl(place / "sft" / "facts.jsonl")][:2] == ["Lume", "Tosk"]
    splits = {item["split"] for item in scores(place / "sft", "in-domain") if item["metric"] == "accuracy"}
    assert splits == {TRAIN, "paraphrase", "country"}
    assert "capitals" in mixsd("corpus", "show", CORPUS)


def test_an_engine_decodes_what_transformers_would(place: Path, mixsd: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    mixsd("mix", CORPUS, "--model", place / "base", *SMALL, "--output", run, "--method", METHOD, "--backend", ENGINE)
    assert "toy engine on cpu in float32" in (run / LOG).read_text()
    own, plain = ([row["target_ids"] for row in read_jsonl(folder / "targets.jsonl")] for folder in (run, place / "weighted"))
    assert own == plain


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixds", r'no method "mixds" \(did you mean "mixsd"\?\); known: mixsd, sft, .*, package.module:name'),
        ("toy_package.gone:SPEC", "method toy_package.gone:SPEC cannot be imported: No module named 'toy_package.gone'"),
        ("toy_package.method:WEIGHTD", r'WEIGHTD does not exist in toy_package.method \(did you mean "WEIGHTED"\?\)'),
        ("toy_package.method:NO_METHOD", "is of type str, expected a MethodSpec"),
    ],
)
def test_what_is_no_method_is_refused(outside: pytest.MonkeyPatch, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_method(name)
    with pytest.raises(ValueError, match=message):
        Settings(method=name)
    assert known_method(name).title == name


def test_two_methods_of_one_name_cannot_share_a_folder(outside: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy_package import method

    monkeypatch.setattr(method, "AGAIN", method.WEIGHTED, raising=False)
    runs = [{"method": METHOD}, {"method": "toy_package.method:AGAIN"}]
    with pytest.raises(UserError, match=r"entry 1 \(\w+\) and entry 2 \(\w+\) share a folder's name"):
        read_sweep({"output": "o", "settings": {"facts": "demo"}, "runs": runs})
