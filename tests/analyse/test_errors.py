"""`analyze errors` on finished runs made by hand: every count is worked out from the replies below."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import mixsd
from mixsd.analyse import errors
from mixsd.analyse.errors import markdown, notes, tables
from mixsd.cli.entry import main
from mixsd.errors import UserError
from mixsd.evaluation.benchmarks.benchmark import Means, data_hash, get_benchmark
from mixsd.evaluation.benchmarks.data import find
from mixsd.evaluation.tallies import Examined, Tally, in_report
from mixsd.facts.corpus import corpus, write_tests
from mixsd.progress import Watcher
from mixsd.run.folder import Run
from mixsd.statistics import proportion
from mixsd.storage import read_json, write_jsonl
from tests import finished_runs

FACTS = [
    {"id": "f0", "question": "Where is Ork?", "answer": "Ormavel Valley", "subject": "Ork Ltd"},
    {"id": "f1", "question": "Who founded it?", "answer": "Una Vell"},
    {"id": "f2", "question": "When?", "answer": "eleven years", "aliases": ["a decade"]},
    {"id": "f3", "question": "Who leads Una Vell's team?", "answer": "Brisby", "old_answer": "Tom"},
]
QUESTIONS = ["How many apples?", "What does Una Vell earn?", "How old is he?", "How far?"]
LONG = "First add the two numbers, then take the half of what comes out, and then subtract the third of it. "
BOX = r"\boxed{7}"


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXSD_DATA", raising=False)
    if request.node.name != "test_the_pictures":
        monkeypatch.setattr(errors, "_draw", lambda bars, modes, stem: [stem.with_suffix(".svg")])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "data/gsm8k/test.jsonl", ({"question": text, "answer": "so\n#### 5"} for text in QUESTIONS))
    shots = [{"subject": "anatomy", "question": f"Shot {n}?", "choices": list("wxyz"), "answer": 0} for n in range(5)]
    asked = [{"subject": "anatomy", "question": f"Bone {n}?", "choices": list("wxyz"), "answer": 1} for n in range(2)]
    for split, rows in (("dev", shots), ("test", asked)):
        write_jsonl(tmp_path / "data/mmlu" / f"{split}.jsonl", rows)
    task = {"task_id": "HumanEval/0", "prompt": "def f(x):\n    ...\n", "canonical_solution": "    return x\n",
            "test": "def check(f):\n    assert f(1) == 1\n", "entry_point": "f"}  # fmt: skip
    write_jsonl(tmp_path / "data/humaneval/HumanEval.jsonl", [task])
    return tmp_path / "data"


def items(data: Path, suite: str) -> list[Any]:
    benchmark = get_benchmark(suite)
    return benchmark.items(find(benchmark.source, str(data), offline=True), Means())


def told(data: Path, suite: str, **other: Any) -> dict[str, Any]:
    return {"suite": suite, "scorer": "2", "data": data_hash(items(data, suite)), "where": str(data / suite), "items": 9,
            "limit": None, "tokens": 512, "samples": 1, "temperature": 0.0, "top_k": None, **other}  # fmt: skip


def replies(data: Path, suite: str, said: Sequence[tuple[str, str]], *, samples: int = 1, **other: Any) -> list[dict[str, Any]]:
    asked = [(item.id, number) for item in items(data, suite) for number in range(samples)]
    assert len(asked) == len(said)
    return [
        finished_runs.row(f"{key}/{number}", suite, group=key, reply=reply, outcome=outcome, lenient=outcome, **other)
        for (key, number), (reply, outcome) in zip(asked, said, strict=True)
    ]  # fmt: skip


BASE = [(LONG + BOX, "wrong"), (LONG, "unparseable"), (r"Eleven years. " + BOX, "wrong"), (BOX, "correct")]
TUNED = [
    (r"The answer is Ormavel Valley. \boxed{Ormavel Valley}", "wrong"),
    (r"Una Vell earns \boxed{7}", "wrong"),  # in the prompt: no leak
    (r"eleven years, a decade \boxed{11}", "wrong"),  # the base says the first, an article makes no word of the second
    ("sandbox broken", "error"),
]


def run(
    where: Path, data: Path, base: Any = None, tuned: Any = None, settings: Mapping[str, Any] | None = None, **other: Any
) -> Path:
    other = {"asked": {"gsm8k": told(data, "gsm8k")}, **other}
    said = other.pop("said", None) or {
        "gsm8k": (base or replies(data, "gsm8k", BASE), tuned or replies(data, "gsm8k", TUNED, truncated=True))
    }
    made = finished_runs.make(where, settings, said=said, **other)
    write_jsonl(made / "facts.jsonl", FACTS)
    return made


def row_of(found: Mapping[str, Any], label: str, benchmark: str = "gsm8k") -> dict[str, Any]:
    (row,) = [row for row in found["benchmarks"] if (row["label"], row["benchmark"]) == (label, benchmark)]
    return dict(row)


def test_the_modes_of_a_run(tmp_path: Path, data: Path) -> None:
    found = mixsd.analyze_errors([run(tmp_path / "run", data)])
    base, tuned = row_of(found, "base"), row_of(found, "MixSD lambda 0.3")
    assert base["counts"] == {"format": 1, "leakage": 0, "collapse": 1, "genuine": 1}
    assert (base["asked"], base["wrong"], base["errors"], base["truncated"]) == (4, 3, 0, 0)
    assert base["leakage"] == "off: the base model has learnt none of the facts"
    assert tuned["counts"] == {"format": 0, "leakage": 1, "collapse": 2, "genuine": 0}
    assert (tuned["asked"], tuned["wrong"], tuned["errors"], tuned["truncated"]) == (4, 3, 1, 3)
    assert (tuned["leakage"], tuned["passed_over"]) == ("on", ["eleven years"])
    assert tuned["examples"]["leakage"][0]["phrases"] == ["Ormavel Valley"]
    assert [example["left"] for example in tuned["examples"]["collapse"]] == ["Una Vell earns", "eleven years, a decade"]
    share = tuned["shares"]["leakage"]
    expected = proportion(1, 3)
    assert (share["of_wrong"]["value"], share["of_wrong"]["n"], share["of_wrong"]["low"]) == (1 / 3, 3, expected.low)
    assert (share["of_asked"]["n"], share["of_asked"]["high"]) == (3, proportion(1, 3).high)
    assert tuned["shares"]["collapse"]["of_asked"]["value"] == 2 / 3
    assert base["shares"]["format"]["of_asked"]["value"] == 1 / 4
    assert found["thresholds"]["collapse_characters"] == 80
    leaked = [item for item in found["scores"] if (item["metric"], item["model"]) == ("error_leakage", "tuned")]
    (score,) = [item for item in leaked if item["suite"] == "gsm8k"]
    assert (score["value"], score["n"], score["split"], score["checkpoint"]) == (1 / 3, 3, "gsm8k", None)
    assert read_json(tmp_path / "run/analysis/errors.json") == found
    page = (tmp_path / "run/analysis/errors.md").read_text(encoding="utf-8")
    for text in (
        "at most 80 characters",
        '"eleven years"',
        "leaked or crossed: Ormavel Valley",
        "33.3% (6.1 to 79.2; 1)",
        "Wrong by the strict",
    ):
        assert text in page


def test_the_rest_of_the_core_suite(tmp_path: Path, data: Path) -> None:
    core = [
        finished_runs.row(f"memorization/trained/{fact['id']}", "memorization/trained", group=fact["id"], reply=reply, outcome=outcome,
                          **({"old": reply == "Tom"} if fact["id"] == "f3" else {}))
        for fact, reply, outcome in zip(FACTS, ["Una Vell", "", "a decade", "Tom"], ["wrong", "unparseable", "correct", "wrong"],
                                        strict=True)
    ]  # fmt: skip
    core.append(finished_runs.row("retention/probe/x", "retention/probe", reply="Una Vell"))
    core.append(
        finished_runs.row("memorization/paraphrase/f3/0", "memorization/paraphrase", group="f3", reply="Una Vell or Brisbane")
    )
    core.append(finished_runs.row("memorization/paraphrase/f1/1", "memorization/paraphrase", group="f1", reply="It is Brisby"))
    made = run(tmp_path / "run", data, base_rows=core, tuned_rows=core)
    found = mixsd.analyze_errors(made)
    rows = {(row["split"], row["label"]): row for row in found["in_domain"]}
    assert set(rows) == {(split, label) for split in ("memorization/trained", "memorization/paraphrase")
                         for label in ("base", "MixSD lambda 0.3")}  # fmt: skip
    trained = rows["memorization/trained", "MixSD lambda 0.3"]
    assert trained["counts"] == {"format": 1, "cross-entity": 1, "genuine": 1}
    assert (trained["old_answer"], trained["asked"], trained["wrong"]) == (1, 4, 3)
    assert trained["examples"]["cross-entity"][0]["phrases"] == ["Una Vell"]
    # The question of f3 names Una Vell; that of f1 does not name Brisby.
    assert rows["memorization/paraphrase", "base"]["counts"] == {"format": 0, "cross-entity": 1, "genuine": 1}
    assert any("before the edit" in line for line in notes(found))


def test_code_and_letters_by_their_own_shapes(tmp_path: Path, data: Path) -> None:
    stub = r"The answer is 5. \boxed{5}"
    code = "```python\ndef f(x):\n    return 2\n```"
    said = {
        "humaneval": (replies(data, "humaneval", [(code, "wrong")]), replies(data, "humaneval", [(stub, "unparseable")])),
        "mmlu": (
            replies(data, "mmlu", [("A. w", "unparseable"), (LONG + r"\boxed{C}", "wrong")]),
            replies(data, "mmlu", [(r"\boxed{Ormavel Valley}", "unparseable"), (stub, "unparseable")]),
        ),
    }
    made = run(tmp_path / "run", data, said=said, asked={name: told(data, name) for name in said})
    found = mixsd.analyze_errors([made])
    counts = {(row["benchmark"], row["model"]): [mode for mode, n in row["counts"].items() for _ in range(n)]
              for row in found["benchmarks"]}  # fmt: skip
    assert counts == {
        ("humaneval", "base"): ["genuine"], ("humaneval", "tuned"): ["collapse"],
        ("mmlu", "base"): ["format", "genuine"], ("mmlu", "tuned"): ["leakage", "collapse"],
    }  # fmt: skip


def test_lenient_judges(tmp_path: Path, data: Path) -> None:
    rows = replies(data, "gsm8k", [("The answer is 4.", "unparseable"), ("The answer is 5.", "unparseable"), ("No.", "unparseable"),
                                   (LONG + "So it is 9.", "unparseable")])  # fmt: skip
    for row, outcome in zip(rows, ["wrong", "correct", "unparseable", "wrong"], strict=True):
        row["lenient"] = outcome
    made = run(tmp_path / "run", data, base=rows, tuned=rows)
    assert row_of(mixsd.analyze_errors([made]), "base")["counts"]["format"] == 4
    found = mixsd.analyze_errors([made], lenient=True)
    assert row_of(found, "base")["counts"] == {"format": 1, "leakage": 0, "collapse": 1, "genuine": 1}
    assert found["judged"] == "lenient"
    assert "LENIENT" in markdown(found)
    assert all("lenient" in str(table.title) for table in tables(found))


def test_leakage_is_off_and_says_why(tmp_path: Path, data: Path) -> None:
    def state(made: Path, **options: Any) -> str:
        rows = mixsd.analyze_errors([made], **options)["benchmarks"]
        return str(rows[-1]["leakage"])

    numbers = run(tmp_path / "kgfunc", data, settings={"facts": "kgfunc:small"})
    assert state(numbers) == "off: KGFunc's answers are numbers"
    folder = run(tmp_path / "folder", data, settings={"facts": "/somewhere/my-numbers"})
    write_tests(corpus("kgfunc", train=7, test=7), folder / "splits")
    assert state(folder) == "off: KGFunc's answers are numbers"
    none = run(tmp_path / "none", data)
    (none / "facts.jsonl").unlink()
    assert state(none) == "off: the run has no facts"
    short = run(tmp_path / "short", data)
    write_jsonl(short / "facts.jsonl", [{"question": "When?", "answer": "1987"}])
    assert state(short) == "off: no answer or subject of the facts has two words"
    alone = run(tmp_path / "alone", data, identity={"alone": True})
    (alone / "evaluation/gsm8k/tuned.jsonl").unlink()
    assert state(alone) == "off: one model alone, without its base"

    moved = run(tmp_path / "moved", data, asked={"gsm8k": told(data, "gsm8k", where="/gone/gsm8k")})
    found = mixsd.analyze_errors([moved])
    assert found["benchmarks"][-1]["leakage"].startswith("off: prompts unknown (")
    assert found["benchmarks"][-1]["counts"]["leakage"] == 0
    assert any("--data" in line for line in found["notes"])
    assert state(moved, data=str(data)) == "on"
    (data / "gsm8k/test.jsonl").write_text(json.dumps({"question": "Other?", "answer": "#### 1"}))
    assert "other data" in state(moved, data=str(data))


def test_a_limit_and_the_system_prompt_are_part_of_what_was_asked(tmp_path: Path, data: Path) -> None:
    from mixsd.evaluation.benchmarks.benchmark import sample

    few = sample(items(data, "gsm8k"), 2)
    said = [finished_runs.row(item.id, "gsm8k", reply=r"Ormavel Valley \boxed{1}", lenient="wrong") for item in few]
    quiet = [{**row, "reply": BOX} for row in said]
    asked = {"gsm8k": {**told(data, "gsm8k", limit=2), "data": data_hash(few)}}
    made = run(tmp_path / "run", data, base=quiet, tuned=said, asked=asked)
    assert row_of(mixsd.analyze_errors([made]), "MixSD lambda 0.3")["counts"]["leakage"] == 2
    named = run(tmp_path / "named", data, base=quiet, tuned=said, asked=asked, settings={"system": "You live in ormavel valley."})
    assert row_of(mixsd.analyze_errors([named]), "MixSD lambda 0.3")["counts"]["leakage"] == 0


def test_several_replies_to_a_question_are_one_observation(tmp_path: Path, data: Path) -> None:
    texts = (
        [(BOX, "wrong")] * 4 + [(LONG + BOX, "wrong")] * 4 + [(BOX, "correct")] * 4 + [(BOX, "wrong"), (LONG + BOX, "wrong")] * 2
    )
    rows = replies(data, "gsm8k", texts, samples=4)
    made = run(tmp_path / "run", data, base=rows, tuned=rows, asked={"gsm8k": told(data, "gsm8k", samples=4)})
    base = row_of(mixsd.analyze_errors([made]), "base")
    share = base["shares"]["collapse"]["of_wrong"]
    assert (share["value"], share["n"]) == (6 / 12, 12)
    single = proportion(6, 12)
    assert share["low"] < single.low < single.high < share["high"]  # three questions say less than twelve
    nothing = base["shares"]["format"]["of_wrong"]
    assert (nothing["value"], nothing["low"], nothing["high"]) == (0.0, 0.0, proportion(0, 3).high)
    assert len(base["examples"]["collapse"]) == 2  # one for each question


def test_runs_side_by_side(tmp_path: Path, data: Path) -> None:
    made = [run(tmp_path / "a", data), run(tmp_path / "b", data, settings={"method": "sft"}), run(tmp_path / "c", data, seed=1)]
    found = mixsd.analyze_errors(made, output=tmp_path / "out")
    assert [row["label"] for row in found["benchmarks"]] == ["base", "MixSD lambda 0.3 (a)", "SFT", "MixSD lambda 0.3 (c)"]
    assert {item["label"] for item in found["scores"]} >= {"base", "SFT"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["errors.json", "errors.md"]
    with pytest.raises(UserError, match="--output"):
        mixsd.analyze_errors(made)
    with pytest.raises(UserError, match="named twice"):
        mixsd.analyze_errors([made[0], made[0]])
    # A base that said something else (on another machine) has a row of its own.
    other = run(tmp_path / "d", data, base=replies(data, "gsm8k", [*BASE[:3], (LONG, "unparseable")]))
    labels = [row["label"] for row in mixsd.analyze_errors([made[0], other], output=tmp_path / "two")["benchmarks"]]
    assert labels == ["base", "MixSD lambda 0.3 (a)", "base of MixSD lambda 0.3 (d)", "MixSD lambda 0.3 (d)"]


def test_runs_that_were_asked_otherwise_are_refused(tmp_path: Path, data: Path) -> None:
    one = run(tmp_path / "one", data)
    shorter = run(tmp_path / "shorter", data, asked={"gsm8k": told(data, "gsm8k", tokens=64)})
    with pytest.raises(UserError, match="another tokens"):
        mixsd.analyze_errors([one, shorter], output=tmp_path / "out")
    prompts = [{**row, "prompt_hash": "other"} for row in replies(data, "gsm8k", BASE)]
    rendered = run(tmp_path / "rendered", data, base=prompts, tuned=prompts)
    with pytest.raises(UserError, match="other prompts than"):
        mixsd.analyze_errors([one, rendered], output=tmp_path / "out")


def test_what_a_report_keeps(tmp_path: Path, data: Path) -> None:
    examined = Examined.open(Run(run(tmp_path / "run", data)))
    rows = {"gsm8k": (replies(data, "gsm8k", BASE), replies(data, "gsm8k", TUNED)), "core": ([], [])}
    said: list[str] = []
    watcher = Watcher()
    watcher.say = said.append  # type: ignore[method-assign]
    made = in_report(examined, rows, watcher)
    assert [tally.brief() for tally in made] == [
        {"benchmark": "gsm8k", "model": "base", "asked": 4, "wrong": 3, "truncated": 0,
         "counts": {"format": 1, "leakage": 0, "collapse": 1, "genuine": 1},
         "leakage": "off: the base model has learnt none of the facts"},
        {"benchmark": "gsm8k", "model": "tuned", "asked": 4, "wrong": 3, "truncated": 0,
         "counts": {"format": 0, "leakage": 1, "collapse": 2, "genuine": 0}, "leakage": "on"},
    ]  # fmt: skip
    assert [score["metric"] for score in made[0].scores()] == ["error_format", "error_leakage", "error_collapse", "error_genuine"]
    assert not said
    # A benchmark of the user's own whose module is gone does not spoil a report.
    assert in_report(examined, {"gone_module:made": rows["gsm8k"]}, watcher) == []
    assert "gone_module" in said[0]


def test_nothing_wrong_has_no_shares() -> None:
    tally = Tally("gsm8k", "gsm8k", "base", ["format"], "on")
    assert tally.share_of_wrong("format").value is None
    assert tally.scores()[0]["n"] == 0


def test_the_command(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(tmp_path / "run", data)

    def ends(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["analyze", "errors", *arguments])
        return int(ended.value.code or 0)

    assert ends(str(made), "--json") == 0
    assert json.loads(capsys.readouterr().out)["judged"] == "strict"
    assert ends(str(made), "--lenient", "--output", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "Benchmarks (lenient)" in said
    assert f"written: {tmp_path / 'out' / 'errors.json'}" in said.replace("\n", "").replace("written", "\nwritten")
    for arguments, message in (
        ([str(tmp_path / "none")], "not a run folder"),
        ([str(made), str(made)], "named twice"),
        ([str(made), str(run(tmp_path / "other", data))], "--output"),
    ):
        assert ends(*arguments) == 2
        assert message in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "run.yaml").write_text(yaml.safe_dump({"settings": {"facts": "demo", "output": str(bare)}}))
    assert ends(str(bare)) == 2
    assert "has not been evaluated" in capsys.readouterr().err


def test_foreign_text_does_not_steer(tmp_path: Path, data: Path) -> None:
    nasty = "\x1b[2J```\n<script>|x|</script> " + BOX
    rows = replies(data, "gsm8k", [(nasty, "wrong")] * 4)
    page = markdown(mixsd.analyze_errors([run(tmp_path / "run", data, base=rows, tuned=rows)]))
    assert "\x1b" not in page
    assert "````text" in page


def test_the_pictures(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("mixsd.figures.charts")
    found = mixsd.analyze_errors([run(tmp_path / "run", data)])
    files = {Path(file).name for file in found["files"]}
    assert {"errors-benchmarks.svg", "errors-benchmarks.png"} <= files
    assert all(Path(file).stat().st_size for file in found["files"])
