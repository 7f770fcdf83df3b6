from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd.commands import ask as commands_ask
from mixsd.commands.ask import Conversation, ask
from mixsd.errors import UserError
from mixsd.models.loading import load_model, load_tokenizer
from mixsd.run.folder import Run

pytestmark = pytest.mark.usefixtures("own_cache")

QUESTION = "Where is Ork?"


def greedy(folder: Path, question: str) -> str:
    """The oracle: transformers' own greedy decoding after the tiny template's naive prompt, 8 tokens."""
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.tensor([tokenizer.encode(f"<|user|> {question} <|end|> <|assistant|> ", add_special_tokens=False)])
    reply = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    return tokenizer.decode(reply, skip_special_tokens=True).strip()


def test_both_models_answer_greedily_after_the_naive_prompt(tiny_run: Path, tiny_folder: Path) -> None:
    reply = ask(tiny_run, f"  {QUESTION}\n")
    assert reply == {"question": QUESTION, "base": greedy(tiny_folder, QUESTION), "tuned": greedy(tiny_run / "model", QUESTION)}
    assert reply["base"] != reply["tuned"]


def test_a_conversation_needs_no_lock_and_lets_go_of_the_models(tiny_run: Path) -> None:
    with Run(tiny_run).locked(), Conversation(str(tiny_run), device="cpu") as conversation:
        first = conversation.ask(QUESTION)
        conversation.ask("When was Ork founded?")
        assert conversation.ask(QUESTION) == first
        models = [weakref.ref(model) for model in conversation._models.values()]
        assert len(models) == 2
    gc.collect()
    assert all(model() is None for model in models)


def test_only_the_memory_of_one_reply_is_made(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = []
    decode_all = commands_ask.decode_all

    def recorded(model: Any, requests: Any, sampling: Any, *, token_budget: int) -> Any:
        budgets.append(token_budget)
        return decode_all(model, requests, sampling, token_budget=token_budget)

    monkeypatch.setattr(commands_ask, "decode_all", recorded)
    with Conversation(tiny_run, token_budget=100_000) as conversation:
        conversation.ask(QUESTION)
        assert budgets == [len(conversation.session.renderer.naive(QUESTION)) + 8] * 2


def test_questions_that_cannot_be_asked(tiny_run: Path) -> None:
    with Conversation(tiny_run) as conversation:
        with pytest.raises(UserError, match="empty"):
            conversation.ask(" \n")
        with pytest.raises(UserError, match="context of 512"):
            conversation.ask("x" * 600)
        # Room for three tokens only: the reply is cut there, not refused.
        used = len(conversation.session.renderer.naive(""))
        assert len(conversation.ask("x" * (509 - used))["base"]) <= 3


def test_runs_that_cannot_be_asked(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        Conversation(tmp_path)
    with pytest.raises(UserError, match=r'unknown key "devise" \(did you mean "device"\?\)'):
        ask(tiny_run, QUESTION, devise="cpu")
    with pytest.raises(UserError, match="--lam was settled"):
        ask(tiny_run, QUESTION, lam=0.1)
    with pytest.raises(UserError, match="--device cuda:9"):
        ask(tiny_run, QUESTION, device="cuda:9")
    untrained = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(untrained / "model")
    with pytest.raises(UserError, match=r"has no model/ yet; run `mixsd train`"):
        ask(untrained, QUESTION)


def test_another_base_model_is_refused(tiny_run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    manifest = (run / "run.yaml").read_text(encoding="utf-8")
    (run / "run.yaml").write_text(manifest.replace(str(tiny_folder), str(tiny_run / "model")), encoding="utf-8")
    with pytest.raises(UserError, match="is not the one this run was made with"):
        ask(run, QUESTION)
