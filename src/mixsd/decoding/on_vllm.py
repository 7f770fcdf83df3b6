"""Mixed decoding on vLLM, through its offline engine alone: requests go in, tokens and log-probabilities come out.

The coins are known beforehand, so a stretch of positions that one conditional decides is one request, greedy and as long as
the stretch; the next stretch is a request to the other conditional, whose prompt holds what was decoded so far (the engine's
prefix cache has most of it). At a temperature above 0, where the addressed number decides, and at a naive position behind the
gate, which both conditionals decide, a request is one token long and the choice is ours, from the log-probabilities that come back.

The log-probabilities of Eq. 3 are left to the base model on transformers: asking vLLM for them would read every target again,
and build an object per token.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mixsd.decoding.requests import EXPERT, GATED, NAIVE, Decoding, Request, Sampling, begin, pick, trim_support
from mixsd.errors import UserError

# What the engine needs to start in one process, where the user has said nothing else; and on a CPU.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
_ON_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2"}
# Keys and values are shared by whole blocks: the smaller they are, the less is read again (32 is the smallest on CPUs).
_BLOCK = {"cpu": 32}
_ROWS = {"cpu": 64}  # else 256
# How many of the expert's best tokens a gated position asks for; it asks for all if the naive token is not among them and may pass.
_BEST = 20


def connect(folder: Path, *, device: str, dtype: str, trust_remote_code: bool) -> Callable[..., Iterator[Decoding]]:
    """The backend of the name "vllm": `decode` on an engine of its own. See `mixsd.run.engines`."""
    return partial(decode, load(folder, device=device, dtype=dtype, trust_remote_code=trust_remote_code))


def load(folder: Path, *, device: str, dtype: str, trust_remote_code: bool = False) -> Any:
    """Start an engine in this process on a model folder; its memory is freed when the process ends.

    `device` ("cpu" or an accelerator's type) is what it is set up for; it runs where its build runs. `dtype`: "float32" or "bfloat16".

    Raises `UserError`: vLLM cannot be imported.
    """
    for name, value in (_ENVIRONMENT | (_ON_CPU if device == "cpu" else {})).items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        raise UserError(f"--backend vllm: vLLM cannot be imported ({error}); pip install 'mixsd[vllm]'") from error
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=str(folder),
            dtype=dtype,
            max_model_len=-1,  # the model's own context, or as much of it as the memory holds
            max_num_seqs=_ROWS.get(device, 256),
            max_logprobs=-1,
            block_size=_BLOCK.get(device),
            enable_prefix_caching=True,
            enforce_eager=device == "cpu",
            distributed_executor_backend="uni",
            generation_config="vllm",  # none of the folder's own sampling settings
            disable_log_stats=True,
            trust_remote_code=trust_remote_code,
        )
    )


@dataclass
class _VllmRow:
    """One request in flight. `asked` is by the conditional, `answers` what came back of it."""

    request: Request
    decoding: Decoding
    asked: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    judging: bool = False  # decoded, and only the expert's support is missing


def decode(
    engine: Any,
    take: Callable[[], Request | None],
    sampling: Sampling,
    *,
    wants_logprobs: Callable[[Decoding], bool] | None = None,
    with_support: bool = False,
    dropped: Collection[str] = (),
) -> Iterator[Decoding]:
    """Decode all requests on an engine that `load` gave; yields each one as it ends. See `continuous.decode` for the arguments.

    As many requests are in flight as the engine takes rows. `wants_logprobs` is never asked: no decoding carries any.
    """
    decoder = _VllmDecoder(engine, sampling, with_support)
    try:
        while decoder.admit(take):
            for key in [row.request.key for row in decoder.rows.values() if row.request.key in dropped]:
                yield decoder.drop(key)
            for row in decoder.step():
                trim_support(row.decoding)
                yield row.decoding
    finally:
        for key in list(decoder.rows):
            decoder.drop(key)


class _VllmDecoder:
    def __init__(self, engine: Any, sampling: Sampling, with_support: bool) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self.engine, self.sampling, self.with_support = engine, sampling, with_support
        self.prompt, self.params, self.kind = TokensPrompt, SamplingParams, RequestOutputKind.FINAL_ONLY
        self.rows: dict[str, _VllmRow] = {}
        self.asked: dict[str, tuple[_VllmRow, str]] = {}
        self.serial = 0

    def admit(self, take: Callable[[], Request | None]) -> bool:
        """Let requests in while there is room; False when nothing is left to do."""
        while len(self.rows) < self.engine.vllm_config.scheduler_config.max_num_seqs and (request := take()):
            row = self.rows[request.key] = _VllmRow(request, begin(request))
            self._go_on(row)
        return bool(self.rows)

    def drop(self, key: str) -> Decoding:
        """Let go of a request in flight; gives what there is of it."""
        row = self.rows.pop(key)
        self.engine.abort_request([name for name in row.asked.values() if self.asked.pop(name, None)])
        return row.decoding

    def step(self) -> list[_VllmRow]:
        """One step of the engine. Returns the rows that are done."""
        done = []
        for output in self.engine.step():
            if not output.finished or output.request_id not in self.asked:
                continue
            row, conditional = self.asked.pop(output.request_id)
            row.answers[conditional] = output
            if len(row.answers) == len(row.asked) and self._is_done(row):
                del self.rows[row.request.key]
                done.append(row)
        return done

    def _is_done(self, row: _VllmRow) -> bool:
        """Take in what came back, and ask for what comes next; True if nothing does."""
        decoding, answers = row.decoding, row.answers
        if row.judging:
            decoding.support = self._supports(row, answers[EXPERT].prompt_logprobs)
            return True
        if not self._take_in(row):
            return False
        if not decoding.ended and len(decoding.ids) < row.request.max_new_tokens:
            self._go_on(row)
            return False
        row.judging = self.with_support and row.request.expert_ids is not None and NAIVE in decoding.sources[row.request.kept :]
        if row.judging:
            self._ask(row, {EXPERT: {"max_tokens": 1, "prompt_logprobs": 1}})
        return not row.judging

    # Asking

    def _go_on(self, row: _VllmRow) -> None:
        """Ask for the next stretch, or the next token."""
        request, t = row.request, len(row.decoding.ids)
        coins = request.naive_coins
        naive = request.expert_ids is None or (coins is not None and bool(coins[t]))
        gated = naive and request.expert_ids is not None and self.sampling.gate > 0
        wanted: dict[str, Any] = {"max_tokens": 1}
        if self.sampling.temperature > 0:
            vocabulary = self.engine.model_config.get_vocab_size()
            top_k = self.sampling.top_k or vocabulary
            wanted["logprobs"] = top_k if top_k < vocabulary else -1
        elif not gated:
            end = t + 1
            while end < request.max_new_tokens and (request.expert_ids is None or (coins is not None and coins[end] == coins[t])):
                end += 1
            wanted["max_tokens"] = end - t
        asked = {NAIVE if naive else EXPERT: wanted}
        if gated:
            asked[EXPERT] = {"max_tokens": 1, "logprobs": wanted.get("logprobs", _BEST)}
        self._ask(row, asked)

    def _ask(self, row: _VllmRow, asked: Mapping[str, Mapping[str, Any]]) -> None:
        for conditional, wanted in asked.items():
            row.answers.pop(conditional, None)
            prompt = row.request.naive_ids if conditional == NAIVE else row.request.expert_ids
            assert prompt is not None
            params = self.params(
                temperature=0,
                ignore_eos=True,
                stop_token_ids=list(self.sampling.stops),
                detokenize=False,
                output_kind=self.kind,
                **wanted,
            )
            self.serial += 1
            name = row.asked[conditional] = str(self.serial)
            self.asked[name] = (row, conditional)
            self.engine.add_request(name, self.prompt(prompt_token_ids=prompt + row.decoding.ids), params)

    # Taking in

    def _take_in(self, row: _VllmRow) -> bool:
        """Append what was decoded, with its sources; False if the expert has to be asked once more."""
        sampling, decoding, answers = self.sampling, row.decoding, row.answers
        source = NAIVE if NAIVE in answers else EXPERT
        tokens = self._tokens(row, source)
        if source == NAIVE and EXPERT in answers:
            found, best = _logprobs(answers[EXPERT].outputs[0].logprobs[0])
            # Not among the expert's best, it is less likely than each of them.
            if sampling.is_implausible(found.get(tokens[0], min(found.values())) - best):
                tokens, source = self._tokens(row, EXPERT), GATED
            elif tokens[0] not in found:
                self._ask(row, {EXPERT: {"max_tokens": 1, "logprobs": -1}})
                return False
        for token in tokens:
            decoding.ended = token in sampling.stops
            decoding.ids.append(sampling.stops.get(token, token))
            decoding.sources += source
        row.answers, row.asked = {}, {}
        return True

    def _tokens(self, row: _VllmRow, conditional: str) -> list[int]:
        output = row.answers[conditional].outputs[0]
        if self.sampling.temperature == 0:
            return list(output.token_ids)
        assert row.request.noise is not None
        found, _ = _logprobs(output.logprobs[0])
        top_k = min(self.sampling.top_k or len(found), len(found))
        ids = sorted(sorted(found, key=lambda token: (-found[token], token))[:top_k])
        noise = torch.tensor([row.request.noise[len(row.decoding.ids)]], dtype=torch.float64)
        logits = torch.tensor([[found[token] for token in ids]], dtype=torch.float64)
        return [ids[int(pick(logits, noise, Sampling({}, self.sampling.temperature)))]]

    def _supports(self, row: _VllmRow, logprobs: list[Any]) -> dict[int, float]:
        """What the expert thought of the naive tokens that were not kept from an earlier attempt."""
        assert row.request.expert_ids is not None
        supports = {}
        for t in range(row.request.kept, len(row.decoding.ids)):
            if row.decoding.sources[t] == NAIVE:
                found, best = _logprobs(logprobs[len(row.request.expert_ids) + t])
                supports[t] = found[row.decoding.ids[t]] - best
        return supports


def _logprobs(entries: Mapping[int, Any]) -> tuple[dict[int, float], float]:
    """A position's tokens with their log-probabilities (natural, at T = 1), and the best of these."""
    found = {token: entry.logprob for token, entry in entries.items()}
    return found, max(found.values())
