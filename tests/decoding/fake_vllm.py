"""A stand-in for vLLM's offline engine: the same calls, a tiny transformers model behind them, one token per request and step."""

import random
import sys
from types import ModuleType, SimpleNamespace

import torch


class FakeEngine:
    """Greedy requests with log-probabilities, as vLLM answers them; in each step some requests get no turn."""

    def __init__(self, model, *, rows: int = 4) -> None:
        self.model = model
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=rows))
        self.model_config = SimpleNamespace(get_vocab_size=lambda: model.config.vocab_size)
        self.requests: dict[str, SimpleNamespace] = {}
        self.begun = 0
        self.draw = random.Random(0)

    def add_request(self, name, prompt, params):
        assert params.temperature == 0
        assert params.ignore_eos
        assert not params.detokenize
        self.begun += 1
        ids = prompt["prompt_token_ids"]
        self.requests[name] = SimpleNamespace(ids=list(ids), params=params, token_ids=[], logprobs=[], prompt=len(ids))

    def abort_request(self, names):
        for name in names:
            del self.requests[name]

    def step(self):
        turns = [name for name in self.requests if self.draw.random() < 0.7] or list(self.requests)[:1]
        return [output for name in turns if (output := self._advance(name)) is not None]

    def _advance(self, name):
        request = self.requests[name]
        with torch.inference_mode():
            logits = self.model(torch.tensor([request.ids + request.token_ids])).logits[0]
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        token = int(logprobs[-1].argmax())
        if request.params.logprobs is not None:
            request.logprobs.append(_entries(logprobs[-1], token, request.params.logprobs))
        request.token_ids.append(token)
        if token not in request.params.stop_token_ids and len(request.token_ids) < request.params.max_tokens:
            return None
        del self.requests[name]
        prompt_logprobs = None
        if request.params.prompt_logprobs is not None:
            after = [_entries(logprobs[i - 1], request.ids[i], 1) for i in range(1, request.prompt)]
            prompt_logprobs = [None, *after]
        output = SimpleNamespace(token_ids=request.token_ids, logprobs=request.logprobs or None)
        return SimpleNamespace(request_id=name, finished=True, outputs=[output], prompt_logprobs=prompt_logprobs)


def _entries(logprobs, token, k):
    """The k best and the token itself, each with its log-probability; all for k = -1."""
    best = logprobs.topk(len(logprobs) if k == -1 else k).indices.tolist()
    return {i: SimpleNamespace(logprob=float(logprobs[i])) for i in {token, *best}}


def install(monkeypatch):
    """Make `import vllm` find the few names that the backend takes from it."""

    class SamplingParams(SimpleNamespace):
        def __init__(self, **given):
            super().__init__(**{"logprobs": None, "prompt_logprobs": None, **given})

    vllm, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.SamplingParams, vllm.TokensPrompt = SamplingParams, dict
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY="final")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
