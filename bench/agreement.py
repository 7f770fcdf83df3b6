"""How often a decoder's targets differ from the oracle's, in fp32 or bf16: near-ties fall otherwise where sums are rounded otherwise.

    .venv-vllm/bin/python bench/agreement.py float32    # transformers and vLLM, each against the oracle of the same precision
    .venv/bin/python bench/agreement.py bfloat16 --without-vllm

One line per decoder, precision and lambda (T = 0): targets that differ in any id or source, of how many, and at which position on average.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial

import torch

from made_facts import made_facts
from mixsd.decoding import continuous, on_vllm, oracle
from mixsd.decoding.requests import Decoding, Request, Sampling
from mixsd.facts.prompts import Renderer
from mixsd.models import loading
from mixsd.randomness import coins

LENGTH = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--facts", type=int, default=24)
    parser.add_argument("--lambdas", nargs="+", type=float, default=[0.3])
    parser.add_argument("--without-vllm", action="store_true")
    options = parser.parse_args()
    folder = loading.locate("smollm2-135m").folder
    print("| precision | decoder | lambda | targets that differ from the oracle's | mean position of the first difference |")
    print("|---|---|---|---|---|")
    model = loading.load_model(folder, dtype=getattr(torch, options.dtype), device=torch.device("cpu")).eval()
    renderer = Renderer(loading.load_tokenizer(folder), model.config, model.generation_config)
    sampling = Sampling(renderer.stops.ids)
    decoders: dict[str, Callable[..., Iterable[Decoding]]] = {
        "transformers": partial(continuous.decode, model, token_budget=16_384)
    }
    if not options.without_vllm:
        decoders["vllm"] = partial(on_vllm.decode, on_vllm.load(folder, device="cpu", dtype=options.dtype))
    for lam in options.lambdas:
        wanted = [
            Request(fact.id, renderer.naive(fact.question), LENGTH, renderer.expert(fact), coins(0, fact.id, lam=lam, n=LENGTH))
            for fact in made_facts(options.facts)
        ]
        truth = {request.key: oracle.decode(model, request, sampling) for request in wanted}
        for decoder, decode in decoders.items():
            stream = iter(wanted)
            at = []
            for item in decode(lambda stream=stream: next(stream, None), sampling):  # type: ignore[misc]
                own = list(zip(item.ids, item.sources, strict=True))
                other = list(zip(truth[item.key].ids, truth[item.key].sources, strict=True))
                if own != other:
                    pairs = enumerate(zip(own, other, strict=False))
                    at.append(next((t for t, (a, b) in pairs if a != b), min(len(own), len(other))))
            mean = f"{sum(at) / len(at):.1f}" if at else ""
            print(f"| {options.dtype} | {decoder} | {lam:g} | {len(at)} of {len(wanted)} | {mean} |", flush=True)


if __name__ == "__main__":
    main()
