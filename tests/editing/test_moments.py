from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixsd.editing import paragraphs, second_moments
from mixsd.editing import parts as editing_moments
from mixsd.editing.edits import start_ids
from mixsd.editing.parts import down_projection
from mixsd.errors import UserError
from tests.editing.helpers import TEXTS, setting


def made(cache: Path, model: Any, renderer: Any, layers: Any = (0, 1), texts: Any = TEXTS, **options: Any) -> Any:
    options = {"model_hash": "m", "tokens": 700, **options}
    return second_moments(model, renderer.tokenizer, texts, layers, cache=cache, **options)


def dense(model: Any, renderer: Any, layer: int, tokens: int, piece: int) -> tuple[np.ndarray, int]:
    """All pieces one by one through the whole model, one outer product per token."""
    ids = [i for text in TEXTS for i in renderer.tokenizer.encode(text, add_special_tokens=False)][:tokens]
    start = start_ids(renderer.tokenizer)
    body = piece - len(start)
    rows: list[np.ndarray] = []
    hook = down_projection(model, layer).register_forward_pre_hook(lambda _, args: rows.extend(args[0][0].detach().numpy()))
    for at in range(0, len(ids), body):
        model(input_ids=torch.tensor([[*start, *ids[at : at + body]]]))
    hook.remove()
    return sum(np.outer(row, row) for row in rows) / len(rows), len(rows)  # type: ignore[return-value]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_it_is_the_mean_outer_product_of_every_token(architecture: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(editing_moments, "PIECE", 100)
    model, renderer = setting(architecture)
    moments = made(tmp_path, model, renderer)
    for layer in (0, 1):
        expected, count = dense(model, renderer, layer, 700, 100)
        assert moments.tokens == count == 700 + 8  # seven pieces of 99 and a rest, each behind one token more
        np.testing.assert_allclose(moments.matrix(layer).numpy(), expected, rtol=0, atol=1e-6 * abs(expected).max())
        assert moments.matrix(layer).dtype == torch.float64


def test_it_does_not_depend_on_how_many_are_read_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(editing_moments, "PIECE", 64)
    model, renderer = setting()
    found = []
    for budget in (64, 200, 10_000):
        monkeypatch.setattr(editing_moments, "TOKENS_PER_PASS", budget)
        found.append(made(tmp_path / str(budget), model, renderer).matrix(1))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-9)


def test_fp32_keys_are_summed_in_fp64(tmp_path: Path) -> None:
    """A sink a million times the rest would drown the rest in fp32."""
    model, renderer = setting(dtype=torch.float32)
    projection = down_projection(model, 0)

    def huge(_: Any, args: Any) -> Any:
        keys = args[0].clone()
        keys[:, 0] = 1e4
        return (keys,)

    projection.register_forward_pre_hook(huge)
    seen: list[torch.Tensor] = []
    projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1).double()))
    moment = made(tmp_path, model, renderer, layers=[0]).matrix(0)
    keys = torch.cat(seen)
    torch.testing.assert_close(moment, keys.T @ keys / len(keys), rtol=1e-12, atol=1e-9)


def test_a_second_time_reads_no_token_and_more_layers_read_only_for_themselves(tmp_path: Path, monkeypatch: Any) -> None:
    model, renderer = setting()
    first = made(tmp_path, model, renderer)
    read: list[list[int]] = []
    summed = editing_moments._summed
    monkeypatch.setattr(editing_moments, "_summed", lambda m, p, layers, done: read.append(layers) or summed(m, p, layers, done))
    counts: list[int] = []
    again = made(tmp_path, model, renderer, on_done=counts.append)
    assert again == first
    assert sum(counts) == first.tokens
    assert read == []
    more = made(tmp_path, model, renderer, layers=[0, 1, 2])
    assert read == [[2]]
    assert more.folders[0] == first.folders[0]


@pytest.mark.parametrize("other", [{"model_hash": "n"}, {"texts": [*TEXTS[1:], TEXTS[0]]}, {"tokens": 600}])
def test_another_model_text_or_length_has_its_own_entry(other: Any, tmp_path: Path) -> None:
    model, renderer = setting()
    first, second = made(tmp_path, model, renderer), made(tmp_path, model, renderer, **other)
    assert set(first.folders.values()).isdisjoint(second.folders.values())


def test_text_beyond_the_limit_does_not_count(tmp_path: Path) -> None:
    model, renderer = setting()
    assert made(tmp_path, model, renderer) == made(tmp_path, model, renderer, texts=[*TEXTS, "and so on"])


@pytest.mark.parametrize("damage", ["torn", "missing", "other shape", "not finite"])
def test_a_damaged_entry_is_made_again(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, renderer = setting()
    first = made(tmp_path, model, renderer)
    wanted, file = first.matrix(1).clone(), first.folders[1] / "moment.safetensors"
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "missing":
        file.unlink()
    else:
        size, value = (3, 1.0) if damage == "other shape" else (len(wanted), float("nan"))
        save_file({"moment": torch.full((size, size), value, dtype=torch.float64)}, file)
    torch.testing.assert_close(made(tmp_path, model, renderer).matrix(1), wanted, rtol=0, atol=0)


def test_a_kill_between_layers_leaves_the_finished_ones(tmp_path: Path, monkeypatch: Any) -> None:
    model, renderer = setting()
    write = editing_moments.write_json

    def killed(path: Path, value: Any) -> None:
        write(path, value)
        if value["layer"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(editing_moments, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, model, renderer)
    assert [folder.name.rsplit("-", 1)[1] for folder in tmp_path.iterdir()] == ["0"]


def test_the_record_says_what_it_is_of(tmp_path: Path) -> None:
    from mixsd.storage import read_json

    model, renderer = setting()
    moments = made(tmp_path, model, renderer)
    record = read_json(moments.folders[0] / "moment.json")
    assert record == {"model_hash": "m", "layer": 0, "text": moments.text, "tokens": moments.tokens, "piece": 512}


def test_weights_and_gradients_are_left_alone(tmp_path: Path) -> None:
    model, renderer = setting()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made(tmp_path, model, renderer)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not down_projection(model, 0)._forward_pre_hooks


def test_no_text_is_an_error(tmp_path: Path) -> None:
    model, renderer = setting()
    with pytest.raises(UserError, match="empty"):
        made(tmp_path, model, renderer, texts=[])


def test_paragraphs_stand_between_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(" One.\nTwo.\n\n \n\nThree.", encoding="utf-8")
    assert list(paragraphs(file)) == [" One.\nTwo.\n", "Three."]
    with pytest.raises(UserError, match="cannot be read"):
        list(paragraphs(tmp_path / "none.txt"))
