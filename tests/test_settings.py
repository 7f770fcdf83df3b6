"""Every option is documented, checked with all its problems at once, and survives the way through YAML."""

from __future__ import annotations

import math
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mixsd.errors import UserError
from mixsd.methods import METHODS
from mixsd.settings import EXECUTION, Settings, build, parse_requirement, read_config, to_yaml

FIELDS = Settings.model_fields
NUMBERS = sorted(name for name, field in FIELDS.items() if {int, float} & {field.annotation, *get_args(field.annotation)})
FLOATS = sorted(name for name, field in FIELDS.items() if float in {field.annotation, *get_args(field.annotation)})

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def some(name: str) -> st.SearchStrategy[Any]:
    """Values that an option takes."""
    if name == "guidance":
        return st.none() | TEXT.map(lambda text: "{reference} " + text.replace("{", "").replace("}", ""))
    if name == "require":
        return st.lists(st.sampled_from(["memorization>=0.9", "probe_delta > -1e-2", "forgetting<.5"]), max_size=2)
    if name == "lr":
        return st.none() | st.just("auto") | st.floats(0, 1, exclude_min=True)
    if name == "lr_grid":
        return st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=3)
    annotation = FIELDS[name].annotation
    if name == "method" or get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation) or list(METHODS))
    limits = {
        kind: getattr(limit, kind) for limit in FIELDS[name].metadata for kind in ("ge", "gt", "le", "lt") if hasattr(limit, kind)
    }
    low, high = limits.get("ge", limits.get("gt", 0)), limits.get("le", limits.get("lt", 10**6))
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT,
        bool: st.booleans(),
        int: st.integers(low, high - ("lt" in limits)),
        float: st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits),
        list[str]: st.lists(TEXT, max_size=3),
        NoneType: st.none(),
    }
    parts = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else [annotation]
    return st.one_of([kinds[kind] for kind in parts])


ANY_SETTINGS = st.fixed_dictionaries({}, optional={name: some(name) for name in FIELDS})


class TestFields:
    @pytest.mark.parametrize("name", FIELDS)
    def test_every_field_is_documented(self, name: str) -> None:
        field = FIELDS[name]
        assert field.description, name
        assert field.description[-1] in ".]", f"{name}: {field.description}"
        assert isinstance(field.json_schema_extra, dict)
        assert field.json_schema_extra["group"]
        if field.default is None and name not in ("system", "guidance"):
            assert "[default: " in field.description, f"{name}: None stands for something; say for what"

    def test_groups_stand_together(self) -> None:
        """`--help` and the YAML have one heading per group."""
        groups = [field.json_schema_extra["group"] for field in FIELDS.values()]  # type: ignore[index,call-overload]
        changes = [group for group, before in zip(groups, [None, *groups], strict=False) if group != before]
        assert len(changes) == len(set(changes))

    def test_execution_settings_exist(self) -> None:
        assert set(EXECUTION) <= set(FIELDS)
        assert len(set(EXECUTION)) == len(EXECUTION)

    def test_the_defaults_are_valid(self) -> None:
        assert build(Settings().dump(), "defaults") == Settings()

    def test_a_method_brings_its_own_defaults_which_what_is_given_overrides(self) -> None:
        assert (Settings(method="opsd").samples, Settings(method="opsd").temperature) == (8, 1.0)
        assert (Settings(method="opsd", samples=2).samples, Settings(method="opsd", temperature=0.5).temperature) == (2, 0.5)
        assert (Settings(method="opsd-nll").samples, Settings(method="opsd-nll").temperature) == (1, 0.0)
        assert (Settings(method="mixsd-kl").lam, Settings(method="mixsd-kl", lam=0.3).lam, Settings().lam) == (0.0, 0.3, 0.3)
        opsd = Settings(method="opsd")
        assert (opsd.kl, opsd.kl_support, opsd.kl_top_k, opsd.kl_tail, opsd.kl_renormalize) == (
            "forward",
            "teacher",
            64,
            "drop",
            True,
        )

    def test_a_search_for_a_learning_rate_scores_and_chooses(self) -> None:
        found = Settings(lr="auto").resolved
        assert (found.lr, found.score_checkpoints, found.choose) == ("auto", True, "paper")
        assert Settings(choose="paper").resolved.score_checkpoints
        assert not Settings().resolved.score_checkpoints

    @pytest.mark.parametrize("values", [{"lr": 0.0}, {"lr": -1e-5}, {"lr_grid": []}, {"lr_grid": [1e-5, 0.0]}, {"lr": "fast"}])
    def test_a_learning_rate_is_above_0(self, values: dict[str, Any]) -> None:
        with pytest.raises(UserError, match="lr"):
            build(values, "test")

    def test_the_defaults_are_the_papers(self) -> None:
        paper = Settings(answer_format="boxed").resolved
        assert (paper.lam, paper.gate, paper.temperature, paper.retries, paper.on_fail) == (0.3, 0, 0, 10, "drop")
        assert (paper.epochs, paper.batch_size, paper.lr, paper.warmup_steps) == (20, 16, 1e-5, 20)
        assert (paper.max_new_tokens, paper.verifier) == (8192, "boxed")


class TestResolved:
    @hypothesis_settings(deadline=None)
    @given(ANY_SETTINGS)
    def test_no_number_is_left_open(self, values: dict[str, Any]) -> None:
        resolved = Settings(**values).resolved
        none_or_all = {
            "revision",
            "system",
            "guidance",
            "forgetting_prompts",
            "probe_questions",
            "shard",
            "lr_steps",
            "edit_text",
            "edit_layers",
            "edit_weight",
            "data",
            "limit",
            "benchmark_tokens",
            "aime_samples",
        }
        assert {name for name, value in resolved.dump().items() if value is None} <= none_or_all
        assert resolved.resolved == resolved
        assert build(resolved.dump(), "again") == resolved

    @hypothesis_settings(deadline=None)
    @given(ANY_SETTINGS)
    def test_what_was_given_stays(self, values: dict[str, Any]) -> None:
        resolved = Settings(**values).resolved.dump()
        for name, value in values.items():
            if value is None or value == "":
                continue
            if name == "micro_batch":
                assert resolved[name] == min(value, resolved["batch_size"])
            elif name in ("choose", "score_checkpoints"):  # a choice needs scores, and a search for a learning rate both
                assert resolved[name] == value or values.get("lr") == "auto" or values.get("choose") == "paper"
            else:
                assert resolved[name] == value

    @pytest.mark.parametrize(
        ("given", "name", "expected"),
        [
            ({}, "verifier", "contains"),
            ({"answer_format": "boxed"}, "verifier", "boxed"),
            ({"answer_format": "boxed", "verifier": "number"}, "verifier", "number"),
            ({}, "max_new_tokens", 256),
            ({"answer_format": "boxed"}, "max_new_tokens", 8192),
            ({}, "lr", 1e-5),
            ({"lora": 8}, "lr", 2e-4),
            ({}, "micro_batch", 8),
            ({"batch_size": 3}, "micro_batch", 3),
            ({"batch_size": 3, "micro_batch": 4}, "micro_batch", 3),
        ],
    )
    def test_what_none_becomes(self, given: dict[str, Any], name: str, expected: Any) -> None:
        settings = Settings(**given)
        assert getattr(settings.resolved, name) == expected
        assert getattr(settings, name) == given.get(name), "the settings themselves stay as they were"


class TestBuild:
    def test_all_problems_at_once_with_suggestions(self) -> None:
        values = {"lamda": 0.3, "max-new-tokens": 5, "batch_size": 0, "lam": 2, "on_fail": "ignore", "epochs": "many", "xyz": 1}
        with pytest.raises(UserError) as caught:
            build(values, "recipe.yaml")
        said = str(caught.value)
        assert said.startswith("recipe.yaml: ")
        assert "\n" not in said
        for part in (
            'unknown key "lamda" (did you mean "lam"?)',
            'unknown key "max-new-tokens" (did you mean "max_new_tokens"?)',
            'unknown key "xyz";',
            "batch_size: input should be greater than or equal to 1 (got 0)",
            "lam: input should be less than or equal to 1 (got 2)",
            "on_fail: input should be 'drop', 'expert', 'canonical' or 'error' (got 'ignore')",
            "epochs: ",
        ):
            assert part in said, part

    @pytest.mark.parametrize("name", FLOATS)
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan"])
    def test_only_finite_numbers(self, name: str, value: Any) -> None:
        with pytest.raises(UserError, match=f"^here: {name}: "):
            build({name: value}, "here")

    @pytest.mark.parametrize("name", NUMBERS)
    def test_true_is_no_number(self, name: str) -> None:
        """`lora: yes` in YAML."""
        with pytest.raises(UserError, match=f"^here: {name}: expected a value, not true or false"):
            build({name: True}, "here")

    def test_yes_and_no_are_what_switches_take(self) -> None:
        assert build({"thinking": True, "offline": False}, "here").thinking

    @pytest.mark.parametrize("name", ["facts", "system", "verifier", "beside"])
    def test_text_must_be_text(self, name: str) -> None:
        """A file name whose bytes are not UTF-8 reaches Python as half of a surrogate pair."""
        value = ["caf\udce9"] if name == "beside" else "caf\udce9"
        with pytest.raises(UserError, match=f"^here: {name}: is not text") as caught:
            build({name: value}, "here")
        str(caught.value).encode()
        with pytest.raises(UserError, match=f"^here: {name}"):
            build({name: 7}, "here")

    def test_a_long_value_is_cut_in_the_message(self) -> None:
        with pytest.raises(UserError) as caught:
            build({"guidance": "no placeholder " * 100}, "here")
        assert len(str(caught.value)) < 300
        assert str(caught.value).endswith("...)")

    def test_a_number_in_words_of_yaml(self) -> None:
        """YAML 1.1 reads 1e-5, which has no point, as text."""
        assert yaml.safe_load("lr: 1e-5") == {"lr": "1e-5"}
        assert build({"lr": "1e-5"}, "here").lr == 1e-5

    def test_assignment_is_checked_too(self) -> None:
        settings = Settings()
        for name, value in (("lam", 2), ("lora", True), ("require", ["memorization"])):
            with pytest.raises(ValueError, match=name):
                setattr(settings, name, value)
        assert settings == Settings()


class TestRequire:
    @pytest.mark.parametrize(
        ("text", "parsed"),
        [
            ("memorization>=0.9", ("memorization", ">=", 0.9)),
            (" probe_delta > -.05 ", ("probe_delta", ">", -0.05)),
            ("forgetting <= 1e-2", ("forgetting", "<=", 0.01)),
            ("forgetting<1", ("forgetting", "<", 1.0)),
        ],
    )
    def test_it_parses(self, text: str, parsed: tuple[str, str, float]) -> None:
        assert parse_requirement(text) == parsed
        assert build({"require": [text]}, "here").require == [text]

    @pytest.mark.parametrize(
        "text", ["", "memorization", "memorization=0.9", ">=0.9", "memorization>=", "memorization>=nan", "a>=1%", "a>=1>=2"]
    )
    def test_it_refuses(self, text: str) -> None:
        with pytest.raises(UserError, match=r"is not NAME>=NUMBER"):
            parse_requirement(text)
        with pytest.raises(UserError, match=r"^here: require: .*is not NAME>=NUMBER"):
            build({"require": ["memorization>=0.9", text]}, "here")

    @hypothesis_settings(deadline=None)
    @given(st.floats(-1e6, 1e6), st.sampled_from([">=", "<=", ">", "<"]))
    def test_any_number(self, number: float, sign: str) -> None:
        assert parse_requirement(f"forgetting{sign}{number!r}") == ("forgetting", sign, number)


class TestGuidance:
    @pytest.mark.parametrize(
        "text", ["{reference}", "Know: {statement} So: {answer}", "\\boxed{} {answer}", "\\boxed{{{answer}}} or \\frac{{1}}{{2}}"]
    )
    def test_it_is_taken(self, text: str) -> None:
        assert build({"guidance": text}, "here").guidance == text

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "{refrence}",
                r"unknown placeholder \{refrence\} \(did you mean \"reference\"\?\); known: \{reference\}, \{answer\}",
            ),
            ("{answer} \\frac{1}{2}", r"unknown placeholder \{1\}; .* as plain text it is \{\{1\}\}"),
            ("Just answer.", "it shows the expert nothing"),
            ("{{answer}}", "it shows the expert nothing"),
            ("", "it shows the expert nothing"),
        ],
    )
    def test_it_is_refused(self, text: str, said: str) -> None:
        with pytest.raises(UserError, match=f"^here: guidance: {said}"):
            build({"guidance": text}, "here")


class TestConfigFile:
    @hypothesis_settings(deadline=None)
    @given(ANY_SETTINGS)
    def test_round_trip(self, tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
        settings = Settings(**values)
        path = tmp_path_factory.getbasetemp() / "settings.yaml"
        path.write_text(to_yaml(settings), encoding="utf-8")
        assert build(read_config(path), str(path)) == settings

    @pytest.mark.parametrize(
        "text", ["\x85", "a\u2028b\x85", "long  words " * 300, "tab\t\n\n line \n", "\r\n", "yes", "1e-5", "# no comment: ' \""]
    )
    def test_text_that_yaml_finds_hard(self, tmp_path: Path, text: str) -> None:
        settings = Settings(system=text, beside=[text])
        (tmp_path / "c.yaml").write_text(to_yaml(settings), encoding="utf-8")
        assert build(read_config(tmp_path / "c.yaml"), "c.yaml") == settings

    def test_it_has_a_heading_per_group_and_every_option_once(self) -> None:
        lines = to_yaml(Settings()).splitlines()
        assert lines[0] == "# Input"
        assert [line.split(":")[0] for line in lines if line and line[0] not in "#-"] == list(FIELDS)
        headings = [line for line in lines if line.startswith("#")]
        assert len(headings) == len(set(headings)) > 3

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"lam: [1, 2", r"c\.yaml: line \d: not valid YAML \("),
            (b"lam: 1\n\tlora: 2", r"c\.yaml: line 2: not valid YAML"),
            (b"lam: !!python/object:os.system 1", r"c\.yaml: line 1: not valid YAML"),
            (b"facts: \x07", r"c\.yaml: not valid YAML \(unacceptable character"),
            (b"facts: 2024-13-45", r"c\.yaml: not valid YAML \(month must be in 1\.\.12\); put text in quotes"),
            (b"facts: \xff", r"c\.yaml: cannot be read"),
            (b"- lam\n- lora", r"c\.yaml: expected a mapping"),
            (b"lam", r"c\.yaml: expected a mapping"),
            (b"1: 2", r"c\.yaml: expected a mapping"),
            (b"lr: 1\n\nlam: 0.1\nlr: 2", r"c\.yaml: line 4: lr stands in line 1 already"),
            (b"{lr: 1, lr: 2}", r"c\.yaml: line 1: lr stands in line 1 already"),
        ],
    )
    def test_what_is_broken_is_named_in_one_line(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_bytes(content)
        with pytest.raises(UserError, match=said) as caught:
            read_config(path)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"none\.yaml: no such config file"):
            read_config(tmp_path / "none.yaml")
        with pytest.raises(UserError, match="cannot be read"):
            read_config(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"# nothing\n", "\ufeff# a byte order mark\n".encode()])
    def test_an_empty_file_sets_nothing(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "c.yaml").write_bytes(content)
        assert read_config(tmp_path / "c.yaml") == {}

    def test_a_date_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("output: 2024-01-01\n")
        with pytest.raises(UserError, match=r"output: input should be a valid string"):
            build(read_config(tmp_path / "c.yaml"), "c.yaml")

    @hypothesis_settings(deadline=None)
    @given(st.binary(max_size=40) | st.text("ab:- \n[]{}#&*!|>'\"%@`?,\t<=~0.", max_size=40).map(str.encode))
    def test_any_bytes_give_settings_or_a_user_error(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        path = tmp_path_factory.getbasetemp() / "any.yaml"
        path.write_bytes(content)
        try:
            values: Any = read_config(path)
        except UserError as error:
            values = str(error)
        if isinstance(values, str):
            assert "\n" not in values
            return
        assume(values)
        with pytest.raises(UserError, match="unknown key"):
            build(values, str(path))
