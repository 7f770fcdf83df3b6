from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixsd.errors import MixsdError, UserError
from mixsd.training import checkpoints, train, verify_model_folder, write_model_folder
from mixsd.training.checkpoints import TRAINER, TrainerState, list_checkpoints, read_state, tidy, write_checkpoint
from tests.training.test_loop import run
from tests.training.tiny import files, make_examples, make_model, make_settings, make_tokenizer, same_bits, weights

pytestmark = pytest.mark.matrix


def a_state(step: int) -> TrainerState:
    return TrainerState(step, {"lora": 0}, {"w/exp_avg": torch.ones(2)}, {"cpu.0": torch.get_rng_state()}, None)


def test_a_checkpoint_is_a_plain_folder_and_its_state_comes_back(tmp_path: Path) -> None:
    model = make_model()
    folder = write_checkpoint(tmp_path, model, make_tokenizer(), a_state(40))
    assert folder.name == "step-000040"
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert same_bits(weights(loaded), weights(model))
    assert AutoTokenizer.from_pretrained(folder, local_files_only=True).eos_token_id == 2
    state = read_state(folder)
    assert (state.step, state.identity, state.adapter) == (40, {"lora": 0}, None)
    assert torch.equal(state.rng["cpu.0"], a_state(40).rng["cpu.0"])
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3]), (1, [3]), (2, [2, 3]), (9, [1, 2, 3])])
def test_only_the_newest_checkpoints_stay_and_only_the_newest_can_be_resumed(tmp_path: Path, keep: int, left: list[int]) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, make_model(), None, a_state(step))
        tidy(tmp_path, keep)
    assert [step for step, _ in list_checkpoints(tmp_path)] == left
    assert [step for step, folder in list_checkpoints(tmp_path) if (folder / TRAINER).exists()] == [3]
    assert len(files(tmp_path)) == len(left)
    tidy(tmp_path, keep)
    assert [step for step, _ in list_checkpoints(tmp_path)] == left


def test_a_pinned_checkpoint_stays_until_it_is_not_pinned_any_more(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, make_model(), None, a_state(step))
    tidy(tmp_path, 1, {1})
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1, 3]
    tidy(tmp_path, 1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [3]


def test_steps_sort_as_numbers(tmp_path: Path) -> None:
    for name in ("step-1000000", "step-000020", "step-000100", "step-x", ".step-000300.1.tmp"):
        (tmp_path / name).mkdir()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [20, 100, 1000000]


def test_an_error_while_writing_leaves_no_partial_checkpoint_and_the_run_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(tmp_path / "a")
    real = checkpoints.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="step-000004: no space left"):
        run(tmp_path / "b")
    assert files(tmp_path / "b" / "checkpoints") == ["step-000002"]
    monkeypatch.undo()
    assert same_bits(weights(run(tmp_path / "b").model), weights(undisturbed.model))


def test_a_checkpoint_whose_callback_was_cut_short_is_handed_over_again(tmp_path: Path) -> None:
    def killed(path: Path, step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_checkpoint=killed)
    seen: list[int] = []
    run(tmp_path, on_checkpoint=lambda path, step: seen.append(step))
    assert seen == [2, 4, 6, 8, 9]
    run(tmp_path, on_checkpoint=lambda path, step: pytest.fail("was handed over before"))


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-000002.77.tmp").mkdir(parents=True)
    run(tmp_path, epochs=1)
    assert files(tmp_path / "checkpoints") == ["step-000003"]


@pytest.mark.parametrize("name", ["rng.safetensors", "optimizer.safetensors", "state.json", "adapter.safetensors"])
def test_a_missing_or_damaged_piece_of_the_state_is_an_error(tmp_path: Path, name: str) -> None:
    run(tmp_path, epochs=1, lora=2)
    piece = tmp_path / "checkpoints" / "step-000003" / TRAINER / name
    piece.write_bytes(b"torn")
    with pytest.raises(UserError, match=name):
        run(tmp_path, epochs=1, lora=2)
    if name == "state.json":
        for other in (b"{}", b"[]", b'{"step": 3, "identity": {"lora": 0}, "more": 1}'):
            piece.write_bytes(other)
            with pytest.raises(UserError, match=r"state\.json: not a training's state"):
                run(tmp_path, epochs=1, lora=2)
    piece.unlink()
    with pytest.raises(UserError, match=rf"{name}: missing, so the training cannot go on exactly; delete .*checkpoints"):
        run(tmp_path, epochs=1, lora=2)


def test_a_random_state_without_this_process_is_an_error(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    piece = tmp_path / "checkpoints" / "step-000003" / TRAINER / "rng.safetensors"
    save_file({"cpu.7": load_file(piece)["cpu.0"]}, piece)
    with pytest.raises(UserError, match="no random state of the cpu for process 0"):
        run(tmp_path, epochs=1)


def test_a_damaged_checkpoint_is_refused_at_resume(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    drop_tensor(tmp_path / "checkpoints" / "step-000003", "model.norm.weight")
    with pytest.raises(UserError, match=r"damaged: missing keys.*model\.norm\.weight"):
        run(tmp_path, epochs=1)


def change(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gemma3", "qwen3"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_good_folder_passes_in_fp32_and_cast(tmp_path: Path, kind: str, dtype: torch.dtype | None) -> None:
    model = make_model(kind)
    before = weights(model)
    write_model_folder(model, make_tokenizer(), tmp_path / "model", dtype=dtype)
    verify_model_folder(tmp_path / "model", model)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == (dtype or torch.float32)
    assert same_bits(weights(model), before)
    assert model.dtype == torch.float32


def test_each_way_a_folder_can_be_wrong_is_named(tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        write_model_folder(make_model("llama"), None, tmp_path / name)
        return tmp_path / name

    model = make_model("llama")
    changed, lost, infinite, torn = folder("changed"), folder("lost"), folder("infinite"), folder("torn")
    change(changed, "model.layers.1.mlp.up_proj.weight", 0.5)
    with pytest.raises(MixsdError, match=r"layers\.1\.mlp\.up_proj\.weight is not what is in memory"):
        verify_model_folder(changed, model)
    drop_tensor(lost, "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(MixsdError, match=r"missing keys on disk, for one model\.layers\.0\.mlp\.up_proj\.weight"):
        verify_model_folder(lost, model)
    change(infinite, "model.norm.weight", float("inf"))
    with pytest.raises(MixsdError, match=r"model\.norm\.weight holds values that are not finite"):
        verify_model_folder(infinite, model)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(MixsdError, match="torn: cannot be loaded again"):
        verify_model_folder(torn, model)
    with pytest.raises(MixsdError, match="cannot be loaded again"):
        verify_model_folder(tmp_path / "nowhere", model)


def test_a_changed_config_and_a_lost_tie_are_found(tmp_path: Path) -> None:
    model = make_model("llama")
    write_model_folder(model, None, tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))
    assert config.read_text() != text
    with pytest.raises(MixsdError, match="logits differ"):
        verify_model_folder(tmp_path, model)
    config.write_text(text)
    tied = make_model("llama")
    tied.lm_head.weight.data.copy_(tied.model.embed_tokens.weight)
    write_model_folder(tied, None, tmp_path)
    verify_model_folder(tmp_path, tied)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    with pytest.raises(MixsdError, match="tied in only one"):
        verify_model_folder(tmp_path, tied)


def test_a_run_checks_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoints.write_model_folder

    def damaged(model: object, tokenizer: object, folder: Path) -> None:
        real(model, tokenizer, folder)
        change(folder, "model.norm.weight", 7.0)

    monkeypatch.setattr(checkpoints, "write_model_folder", damaged)
    with pytest.raises(MixsdError, match=r"model\.norm\.weight is not what is in memory"):
        train(make_model(), None, make_examples(4), settings=make_settings(), folder=tmp_path)
