"""Flags, the config file and what comes of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from mixsd.cli.options import flag
from mixsd.run.folder import Run
from mixsd.settings import EXECUTION, Settings
from tests.cli.conftest import Outcome

Mixsd = Callable[..., Outcome]

SPECIAL = {"require": "memorization>=0.9", "guidance": "The answer is {answer}.", "lr_grid": "0.25", "method": "memit"}


def typed_value(name: str) -> tuple[str, Any]:
    """A value that is not the default, as it is typed and as it is read."""
    field = Settings.model_fields[name]
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (UnionType, Union) else (field.annotation,)
    kind = next(kind for kind in kinds if kind is not NoneType)
    if kind == list[float]:
        return SPECIAL[name], [float(SPECIAL[name])]
    if get_origin(kind) is list:
        return SPECIAL.get(name, "some"), [SPECIAL.get(name, "some")]
    if get_origin(kind) is Literal:
        return get_args(kind)[-1], get_args(kind)[-1]
    return {int: ("7", 7), float: ("0.25", 0.25), str: (SPECIAL.get(name, "some"),) * 2}[kind]


def printed(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    values: dict[str, Any] = yaml.safe_load(outcome.out)
    assert list(values) == list(Settings.model_fields)
    return values


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_flag_goes_before_config_before_default(name: str, mixsd: Mixsd, tmp_path: Path) -> None:
    default = printed(mixsd("inject", "--print-config"))[name]
    config = tmp_path / "run.yaml"
    if Settings.model_fields[name].annotation is bool:
        on, off, value = [flag(name)], [f"--no-{flag(name)[2:]}"], not default
        arguments, opposite = (on, off) if value else (off, on)
        config.write_text(yaml.safe_dump({name: value}))
        assert printed(mixsd("inject", "--config", config, *opposite, "--print-config"))[name] is default
    else:
        text, value = typed_value(name)
        arguments = [flag(name), text]
        config.write_text(yaml.safe_dump({name: value}))
    assert default != value
    assert printed(mixsd("inject", *arguments, "--print-config"))[name] == value
    assert printed(mixsd("inject", "--config", config, "--print-config"))[name] == value
    config.write_text(yaml.safe_dump({name: default}))
    assert printed(mixsd("inject", "--config", config, *arguments, "--print-config"))[name] == value
    assert printed(mixsd("inject", "--config", config, "--print-config"))[name] == default


def test_facts_as_argument_go_before_the_flag_and_the_file(mixsd: Mixsd, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("facts: file.jsonl\n")
    assert printed(mixsd("mix", "--config", config, "--print-config"))["facts"] == "file.jsonl"
    assert (
        printed(mixsd("mix", "mine.jsonl", "--facts", "flag.jsonl", "--config", config, "--print-config"))["facts"]
        == "mine.jsonl"
    )


def test_lists_repeat(mixsd: Mixsd) -> None:
    values = printed(mixsd("inject", "--require", "memorization>=0.9", "--require", "forgetting<=0.1", "--print-config"))
    assert values["require"] == ["memorization>=0.9", "forgetting<=0.1"]


def test_printed_config_is_a_config(mixsd: Mixsd, tmp_path: Path) -> None:
    odd = [
        "--system",
        "Öl: #1\n\"zwei\" 'drei' 日本\t",
        "--guidance",
        "{reference}\n\nNow: {answer}",
        "--lora",
        8,
        "--lr",
        "3e-5",
    ]
    first = mixsd("inject", "facts.jsonl", "--output", "runs/a b", *odd, "--answer-format", "boxed", "--print-config")
    values = printed(first)
    assert (values["verifier"], values["max_new_tokens"], values["lr"]) == ("boxed", 8192, 3e-5)
    (tmp_path / "full.yaml").write_text(first.out, encoding="utf-8")
    assert mixsd("inject", "--config", "full.yaml", "--print-config").out == first.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.yaml"]


def test_a_runs_own_manifest_is_a_config(mixsd: Mixsd) -> None:
    settings = Settings(facts="f.jsonl", output="runs/a", lam=0.5).resolved
    Run(Path("runs/a")).claim(settings, {"model_hash": "x"})
    values = printed(mixsd("inject", "--config", "runs/a/run.yaml", "--output", "runs/b", "--print-config"))
    assert values == {**settings.dump(), "output": "runs/b"}


def test_a_runs_settings_are_printed_of_the_run(mixsd: Mixsd) -> None:
    Run(Path("a")).claim(Settings(facts="f.jsonl", output="a", lam=0.5).resolved, {})
    for command in ("train", "evaluate"):
        values = printed(mixsd(command, "a", "--device", "cpu", "--print-config"))
        assert (values["lam"], values["device"]) == (0.5, "cpu")


def test_problems_of_file_and_flags_come_out_at_once(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lamb: 0.2\nepoch: 3\nretries: -1\n")
    line = fails(
        "inject", "--config", "run.yaml", "--lam", "1.5", "--epochs", "nine", "--guidance", "{fact}", "--require", "good"
    )
    assert 'run.yaml: unknown key "lamb" (did you mean "lam"?); unknown key "epoch" (did you mean "epochs"?)' in line
    assert "retries: input should be greater than or equal to 0 (got -1)" in line
    assert "--lam: input should be less than or equal to 1 (got '1.5')" in line
    assert "--epochs: input should be a valid integer" in line
    assert "--guidance: unknown placeholder {fact}" in line
    assert "--require: 'good' is not NAME>=NUMBER" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inject", "--lamb", "0.3"], 'no such option: --lamb (did you mean "--lam"?); see `mixsd inject --help`'),
        (["inject", "--no-offlin"], 'no such option: --no-offlin (did you mean "--no-offline"?)'),
        (["inject", "--max_new_tokens", "3"], 'did you mean "--max-new-tokens"?'),
        (["report", "runs/a", "--lam", "0.3"], "no such option: --lam"),
        (["injct", "facts.jsonl"], "'inject'"),
        (["--versoin"], 'no such option: --versoin (did you mean "--version"?)'),
        (["train"], "missing argument 'SOURCE'; see `mixsd train --help`"),
        (["inspect", "a", "--limit", "many"], "'--limit'"),
        (["inject", "a.jsonl", "b.jsonl"], "b.jsonl"),
        (["inject", "--lam"], "--lam"),
        (
            ["inject", "--method", "sdf"],
            '--method: no method "sdf" (did you mean "sft"?); known: mixsd, sft, opsd, opsd-nll, mixsd-kl, memit, '
            "package.module:name (got 'sdf')",
        ),
    ],
)
def test_bad_command_line(arguments: list[str], said: str, fails: Callable[..., str]) -> None:
    assert said in fails(*arguments)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "\x00"])
def test_config_that_is_none(text: str, fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert "run.yaml" in fails("inject", "--config", "run.yaml")
    assert "missing.yaml: no such config file" in fails("inject", "--config", "missing.yaml")


def test_help_shows_every_flag_with_its_default(mixsd: Mixsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)  # read from the environment when it is imported
    text = mixsd("inject", "--help").out
    assert "mixsd|sft|opsd|opsd-nll|mixsd-kl|memit|package.module:name" in text
    for name in Settings.model_fields:
        assert f" {flag(name)} " in text
    line = next(line for line in text.splitlines() if " --weight-decay " in line)
    assert "AdamW's weight decay. [default: 0.01]" in line
    assert "[default: the corpus's own; else 256 for plain, 8192 for boxed]" in text
    assert [text.count(f"─ {group} ─") for group in ("Input", "Prompts", "Mixing", "Training", "Machine")] == [1] * 5
    short = mixsd("report", "--help").out
    assert [name for name in Settings.model_fields if f" {flag(name)} " in short] == [
        n for n in Settings.model_fields if n in EXECUTION
    ]


def test_no_arguments_are_help_and_version_is_one_line(mixsd: Mixsd) -> None:
    assert "inject" in mixsd().out
    outcome = mixsd("--version")
    assert (outcome.code, outcome.out.split()[0], outcome.out.count("\n")) == (0, "mixsd", 1)
