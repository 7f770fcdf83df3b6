"""The vLLM backend on vLLM itself and the built-in model; run by `make test-vllm`, in vLLM's own environment."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: make test-vllm", allow_module_level=True)

from mixsd.decoding import continuous, on_vllm
from mixsd.decoding.requests import Request, Sampling
from mixsd.facts.fact import Fact
from mixsd.facts.prompts import Renderer
from mixsd.models import loading
from mixsd.randomness import coins, uniforms
from mixsd.storage import read_jsonl

NAMES = ("Bel", "Cor", "Dra", "Eln", "Fen", "Gor", "Hal", "Ist")
FACTS = [
    Fact(f"Who founded {name}eth Mills{' in the old valley by the river' * (i % 3)}?", f"{name}or Wick", id=name)
    for i, name in enumerate(NAMES)
]
LENGTH = 20


@pytest.fixture(scope="module")
def folder():
    return loading.locate("smollm2-135m").folder


@pytest.fixture(scope="module")
def engine(folder):
    # fp32: only there is equality more than a likelihood.
    return on_vllm.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(folder):
    return loading.load_model(folder, dtype=torch.float32, device=torch.device("cpu")).eval()


@pytest.fixture(scope="module")
def renderer(folder, model):
    return Renderer(loading.load_tokenizer(folder), model.config, model.generation_config)


def requests(renderer, lam):
    return [
        Request(
            fact.id,
            renderer.naive(fact.question),
            LENGTH,
            renderer.expert(fact),
            coins(0, fact.id, lam=lam, n=LENGTH),
            uniforms(0, "noise", fact.id, n=LENGTH),
        )
        for fact in FACTS
    ]


def taken(wanted):
    stream = iter(wanted)
    return lambda: next(stream, None)


@pytest.mark.parametrize(
    ("lam", "sampling"),
    [
        (0.0, {}),
        (0.3, {}),
        (0.5, {"gate": 0.1}),
        (0.5, {"temperature": 1.0, "top_k": 64}),
        (0.5, {"temperature": 1.0, "gate": 0.2}),
    ],
)
def test_it_equals_transformers_decoding(engine, model, renderer, lam, sampling):
    """Two engines round differently, so a near-tie may fall otherwise: a difference must stand at one, and be rare."""
    sampling = Sampling(renderer.stops.ids, **sampling)
    wanted = requests(renderer, lam)
    truth = {item.key: item for item in continuous.decode(model, taken(wanted), sampling, token_budget=8192, with_support=True)}
    found = {item.key: item for item in on_vllm.decode(engine, taken(wanted), sampling, with_support=True)}
    assert found.keys() == truth.keys()
    differing = [key for key, item in found.items() if (item.ids, item.sources) != (truth[key].ids, truth[key].sources)]
    assert len(differing) <= 1, differing
    for key, item in found.items():
        if key not in differing:
            assert item.ended == truth[key].ended
            assert item.support == pytest.approx(truth[key].support, abs=1e-3)


def test_mix_on_the_command_line(tmp_path, folder):
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps({"question": f.question, "answer": f.answer, "id": f.id}) + "\n" for f in FACTS))
    essence = {}
    for backend in ("transformers", "vllm"):
        run = tmp_path / backend
        command = [sys.executable, "-m", "mixsd", "mix", str(facts), "--output", str(run), "--gate", "0.1"]
        command += ["--max-new-tokens", "24", "--retries", "2", "--retry", "from-break", "--backend", backend]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-500:]
        rows = list(read_jsonl(run / "targets.jsonl"))
        assert all(len(row["base_logprobs"]) == len(row["target_ids"]) for row in rows)
        essence[backend] = [(row["id"], row["target_ids"], row["sources"], row["accepted"]) for row in rows]
    same = sum(a == b for a, b in zip(essence["transformers"], essence["vllm"], strict=True))
    assert same >= len(FACTS) - 1


def test_evaluate_on_the_command_line(tmp_path):
    """Greedy replies to invented records of GSM8K, by both engines; a near-tie may fall otherwise."""
    records = [{"question": f"What is {n} plus {n + 1}?", "answer": f"Together {2 * n + 1}.\n#### {2 * n + 1}"} for n in range(6)]
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    said = {}
    for backend in ("transformers", "vllm"):
        run = tmp_path / backend
        command = [sys.executable, "-m", "mixsd", "evaluate", "smollm2-135m", "--suite", "gsm8k", "--output", str(run)]
        command += ["--data", str(tmp_path / "data"), "--benchmark-tokens", "48", "--backend", backend, "--limit", "6"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-500:]
        said[backend] = [row["reply_ids"] for row in read_jsonl(run / "evaluation" / "gsm8k" / "base.jsonl")]
    assert all(said["vllm"])
    assert sum(a == b for a, b in zip(said["transformers"], said["vllm"], strict=True)) >= len(records) - 1
