"""From a name to a loaded model: what is found, what is refused, and what a damaged cache does."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixsd.errors import UserError
from mixsd.models import loading
from tests.tiny import TEMPLATE, save_tiny, tiny_model

pytestmark = pytest.mark.matrix

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that no test changes."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A model folder of one's own."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def load(folder: Path, **options: Any) -> Any:
    return loading.load_model(folder, **({"dtype": torch.float32, "device": CPU} | options))


def refused(call: Callable[[], Any], *parts: str) -> str:
    """The one line with which `call` is refused, after checking that it holds the parts."""
    with pytest.raises(UserError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    for part in parts:
        assert part in said
    return said


class TestLocate:
    def test_a_folder_is_itself_and_the_network_stays_out(self, tiny: Path, no_network: list[Any]) -> None:
        located = loading.locate(str(tiny))
        assert located == loading.LocalModel(str(tiny), tiny, None)
        load(located.folder)
        loading.load_tokenizer(located.folder)
        assert no_network == []

    def test_a_home_folder(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tiny.parent))
        assert loading.locate("~/tiny").folder == tiny

    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("no/such/folder", ("--model no/such/folder: no such folder or file",)),
            ("missing.gguf", ("--model missing.gguf: no such folder or file",)),
            ("some/missing.gguf", ("--model some/missing.gguf: no such folder or file",)),
            ("smollm2-135", ('did you mean "smollm2-135m"?',)),
            ("", ("",)),
        ],
    )
    def test_nothing_has_that_name(
        self, name: str, parts: tuple[str, ...], no_network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        refused(lambda: loading.locate(name), *parts)
        assert no_network == []

    def test_a_file_must_be_gguf(self, tiny: Path) -> None:
        refused(
            lambda: loading.locate(str(tiny / "model.safetensors")), "a file must be .gguf; otherwise name the model's folder"
        )

    @pytest.mark.parametrize(
        ("gone", "said"),
        [
            (["config.json"], "not a model folder (no config.json)"),
            (["model.safetensors"], "no .safetensors weights"),
            (["tokenizer.json", "tokenizer_config.json"], "no tokenizer (no tokenizer.json)"),
        ],
    )
    def test_an_incomplete_folder(self, copy: Path, gone: list[str], said: str) -> None:
        for name in gone:
            (copy / name).unlink()
        refused(lambda: loading.locate(str(copy)), str(copy), said)

    def test_weights_in_pickle_format_only(self, copy: Path) -> None:
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
        refused(lambda: loading.locate(str(copy)), "weights in pickle format are not loaded; convert them first")

    def test_an_adapter(self, copy: Path) -> None:
        (copy / "adapter_config.json").write_text("{}")
        refused(lambda: loading.locate(str(copy)), "a LoRA adapter, not a model; merge it")


class TestHub:
    FILES = (
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "tokenizer.json",
        "chat_template.jinja",
        "merges.txt",
        "modeling_own.py",
        "README.md",
    )
    LEFT = (
        "pytorch_model.bin",
        "consolidated.00.pth",
        "model.pt",
        "training_args.pkl",
        "consolidated.safetensors",
        "original/params.json",
        "original/model.safetensors",
        "onnx/model.onnx",
        "model.gguf",
        "flax_model.msgpack",
        "image.png",
    )

    @pytest.fixture
    def asked(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """What the hub's client is asked for; it answers with a folder here."""
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        calls: list[dict[str, Any]] = []

        def snapshot_download(name: str, **options: Any) -> str:
            calls.append({"name": name, **options})
            return str(copy)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return calls

    def test_what_is_downloaded(self, asked: list[dict[str, Any]], copy: Path) -> None:
        """Judged by the client's own filter."""
        from huggingface_hub.utils import filter_repo_objects

        located = loading.locate("org/model-1.5")
        assert (located.name, located.folder) == ("org/model-1.5", copy)
        (call,) = asked
        assert call["name"] == "org/model-1.5"
        assert call["local_files_only"] is False
        patterns = {key: call[key] for key in ("allow_patterns", "ignore_patterns")}
        assert tuple(filter_repo_objects([*self.FILES, *self.LEFT], **patterns)) == self.FILES

    def test_offline_asks_the_local_cache_only(self, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        loading.locate("org/model", offline=True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        loading.locate("org/model")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        loading.locate("org/model")
        assert [call["local_files_only"] for call in asked] == [True, True, False]

    def test_a_revision_is_asked_for_and_its_commit_remembered(self, asked: list[dict[str, Any]], copy: Path) -> None:
        assert loading.locate("org/model").revision is None
        assert loading.locate("org/model", revision="v1.0").revision == "v1.0"
        assert [call["revision"] for call in asked] == [None, "v1.0"]

    def test_the_commit_is_the_name_of_the_snapshot(self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        snapshot = Path(shutil.copytree(tiny, tmp_path / ("0123456789abcdef" * 3)[:40]))
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(snapshot))
        assert loading.locate("org/model", revision="main").revision == snapshot.name

    def test_what_is_not_on_the_hub_has_no_revision(self, asked: list[dict[str, Any]], copy: Path) -> None:
        for name in (str(copy), loading.BUILT_IN):
            refused(
                lambda name=name: loading.locate(name, revision="v1.0"), f"--revision v1.0: --model {name} is not a hub model"
            )
        assert asked == []

    def test_a_snapshot_is_checked_like_any_folder(self, asked: list[dict[str, Any]], copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        refused(lambda: loading.locate("org/model"), "no .safetensors weights")

    def test_offline_and_not_in_the_cache(self, no_network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The real client, with an empty cache."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        refused(lambda: loading.locate("org/model", offline=True), "--model org/model: ", "(offline and not in the local cache)")
        assert no_network == []

    def test_what_the_client_says_becomes_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def gated(*args: Any, **options: Any) -> str:
            raise RuntimeError("Access to org/model is restricted.\nVisit the page to ask for it.")

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.snapshot_download", gated)
        refused(lambda: loading.locate("org/model"), "not to be had from the hub (Access to org/model is restricted.)")


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n# Model\n", "mit"),
        ("---\nlanguage: en\nlicense: 'apache-2.0'\ntags:\n- x\n---\n", "apache-2.0"),
        ("\ufeff---\r\nlicense: llama3.1\r\n---\r\n", "llama3.1"),
        ("---\nlicense:\n- mit\n- cc-by-4.0\n---\n", "mit, cc-by-4.0"),
        ("---\ntags:\n" + "- a long list of tags\n" * 500 + "license: gemma\n---\n", "gemma"),
        ("---\nlicense:\nlanguage: en\n---\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("---\nlicense: [broken\n---\n", None),
        ("---\njust words\n---\n", None),
        ("---\n---\n", None),
        ("license: mit\n", None),
        (None, None),
    ],
)
def test_the_license_that_a_card_states(copy: Path, card: str | None, expected: str | None) -> None:
    if card is not None:
        (copy / "README.md").write_bytes(card.encode())
    assert loading.locate(str(copy)).license == expected


class TestModelHash:
    def test_it_is_the_folders_content(self, tiny: Path, copy: Path) -> None:
        assert loading.model_hash(copy) == loading.model_hash(tiny)
        assert loading.model_hash(copy.rename(copy.with_name("moved"))) == loading.model_hash(tiny)

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    )
    def test_what_decides_changes_it(self, copy: Path, name: str) -> None:
        before = loading.model_hash(copy)
        content = bytearray((copy / name).read_bytes())
        content[-3] ^= 1
        (copy / name).write_bytes(content)
        assert loading.model_hash(copy) != before

    @pytest.mark.parametrize("name", ["chat_template.jinja", "modeling_own.py", "model-00002-of-00002.safetensors", "merges.txt"])
    def test_a_further_file_that_decides_changes_it(self, copy: Path, name: str) -> None:
        before = loading.model_hash(copy)
        (copy / name).write_text(f"{TEMPLATE} ")
        assert loading.model_hash(copy) != before

    @pytest.mark.parametrize(
        "name", ["README.md", loading.PROVENANCE, "mixsd-conversion.json", "original/model.safetensors", "a.bin", ".git"]
    )
    def test_what_does_not_decide_leaves_it(self, copy: Path, name: str) -> None:
        before = loading.model_hash(copy)
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
        assert loading.model_hash(copy) == before

    def test_two_files_that_swap_their_contents(self, copy: Path) -> None:
        before = loading.model_hash(copy)
        (copy / "config.json").rename(copy / "x")
        (copy / "generation_config.json").rename(copy / "config.json")
        (copy / "x").rename(copy / "generation_config.json")
        assert loading.model_hash(copy) != before


class TestLoading:
    def test_it_is_the_model_that_was_saved(self, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """The oracle is the model in memory that the folder was written from."""
        saved = tiny_model(vocab=len(loading.load_tokenizer(tiny)), dtype=torch.float32)
        loaded = load(tiny)
        ids = torch.arange(3, 40)[None]
        assert torch.equal(loaded(ids).logits, saved(ids).logits)
        assert not loaded.training
        assert load(tiny, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert capfd.readouterr().err == "", "no progress bars"

    def test_the_users_progress_bars_are_left_as_they_were(self, tiny: Path) -> None:
        from transformers.utils import logging

        before = logging.is_progress_bar_enabled()
        try:
            for switch in (logging.disable_progress_bar, logging.enable_progress_bar):
                switch()
                chosen = logging.is_progress_bar_enabled()
                load(tiny)
                assert logging.is_progress_bar_enabled() is chosen
        finally:
            (logging.enable_progress_bar if before else logging.disable_progress_bar)()

    def test_pickle_is_never_opened(self, copy: Path, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "sprung",)

        (copy / "model.safetensors").unlink()
        (copy / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Trap()}))
        refused(lambda: load(copy), str(copy), "the model cannot be loaded")
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("known", [True, False])
    def test_code_that_comes_with_a_model_does_not_run(self, copy: Path, tmp_path: Path, known: bool) -> None:
        trap = f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\n"
        for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
            (copy / name).write_text(trap)
        config = json.loads((copy / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "configuration_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
        config["model_type"] = config["model_type"] if known else "own"
        (copy / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
        tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_own.Tokenizer", None]}
        (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        if known:
            load(copy)
        else:
            refused(lambda: load(copy), str(copy), "the model cannot be loaded", "code")
        with nullcontext() if known else suppress(UserError):
            loading.load_tokenizer(copy)
        assert not (tmp_path / "sprung").exists()

    def test_damaged_weights(self, copy: Path) -> None:
        content = (copy / "model.safetensors").read_bytes()
        for damaged in (content[: len(content) // 2], b"", b"\xff" * 100):
            (copy / "model.safetensors").write_bytes(damaged)
            refused(lambda: load(copy), str(copy), "the model cannot be loaded")

    def test_weights_that_lack_a_tensor(self, copy: Path) -> None:
        """The loader's own way is to fill it with random numbers."""
        from safetensors.torch import load_file, save_file

        weights = load_file(copy / "model.safetensors")
        lost = weights.pop("model.layers.1.mlp.up_proj.weight")
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        refused(lambda: load(copy), "the weights lack 1 tensors of the model (model.layers.1.mlp.up_proj.weight)")
        weights["model.layers.1.mlp.up_proj.weight"] = lost[:, :-1].contiguous()
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        refused(lambda: load(copy), str(copy))

    def test_weights_that_have_no_place_are_said(self, copy: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        config["num_hidden_layers"] -= 1
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.warns(UserWarning, match=r"tensors have no place in the model \(model\.layers"):
            load(copy)

    def test_a_shard_that_is_not_there(self, copy: Path) -> None:
        model = load(copy)
        (copy / "model.safetensors").unlink()
        model.save_pretrained(copy, max_shard_size="20KB")
        shards = sorted(copy.glob("*.safetensors"))
        assert len(shards) > 1
        load(copy)
        shards[0].unlink()
        refused(lambda: load(loading.locate(str(copy)).folder), str(copy))

    def test_files_in_subfolders_are_not_read(self, copy: Path) -> None:
        (copy / "original").mkdir()
        (copy / "original" / "model.safetensors").write_bytes(b"\xff" * 100)
        load(loading.locate(str(copy)).folder)

    @pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "nothing-known"}'])
    def test_a_config_that_says_nothing(self, copy: Path, content: str) -> None:
        (copy / "config.json").write_text(content)
        refused(lambda: load(copy), str(copy), "the model cannot be loaded")

    def test_a_broken_tokenizer(self, copy: Path) -> None:
        (copy / "tokenizer.json").write_text("{")
        refused(lambda: loading.load_tokenizer(copy), str(copy), "the tokenizer cannot be loaded")

    def test_a_device_that_is_too_small(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(self: Any, device: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

        monkeypatch.setattr("transformers.PreTrainedModel.to", full)
        refused(lambda: load(tiny), str(tiny), "does not fit into the memory of cpu; use --dtype bf16")


class TestDevices:
    def test_auto_takes_what_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
            monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
            assert loading.resolve_device("auto").type == expected

    def test_a_numbered_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert loading.resolve_device("cuda:1") == torch.device("cuda", 1)
        refused(lambda: loading.resolve_device("cuda:2"), "--device cuda:2: not on this machine; use --device cpu or auto")

    def test_one_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        assert loading.resolve_device("cpu") == CPU
        for name in ("cuda", "cuda:0", "mps", "meta", "xpu"):
            refused(lambda name=name: loading.resolve_device(name), f"--device {name}: not on this machine")
        for name in ("gpu", "", "cuda:x", "cpu cuda"):
            refused(
                lambda name=name: loading.resolve_device(name), f"--device {name}: unknown; use auto, cpu, cuda, cuda:N or mps"
            )

    def test_precision(self) -> None:
        assert loading.resolve_dtype("auto", CPU) == torch.float32
        assert loading.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
        assert loading.resolve_dtype("bf16", CPU) == torch.bfloat16
        refused(lambda: loading.resolve_dtype("fp16", CPU), "--dtype fp16: unknown; use auto, fp32 or bf16")


def test_context_length() -> None:
    assert loading.context_length(tiny_model().config) == 512
    assert loading.context_length(tiny_model("gemma3").config) == 512
    inner = SimpleNamespace(max_position_embeddings=77)
    assert loading.context_length(SimpleNamespace(get_text_config=lambda: inner)) == 77
    assert loading.context_length(SimpleNamespace()) == 2**20, "nothing stated: as good as no limit"


def test_provenance(copy: Path) -> None:
    assert loading.provenance(copy) is None
    for content, expected in (('{"mixsd": "1"}', {"mixsd": "1"}), ("[]", None), ("{", None)):
        (copy / loading.PROVENANCE).write_text(content)
        assert loading.provenance(copy) == expected
