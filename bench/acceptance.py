"""How many facts MixSD's attempts reach, and how far their targets are from the base model: temperature, lambda, gate and retries.

One row per setting: facts accepted at the first attempt and after all retries, the tokens decoded per token of an accepted target
(`generated_per_accepted`), how many naive coins the gate left, and the mean base NLL of the accepted targets (Eq. 3).

    python bench/acceptance.py                        # the bundled facts
    python bench/acceptance.py --facts facts.jsonl --retries 10
    python bench/acceptance.py --made 48 --retries 10 --set retries   # restarts beside --retry from-break
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from made_facts import made_facts
from mixsd.facts import corpus
from mixsd.facts.answers import get_verifier
from mixsd.facts.prompts import Renderer
from mixsd.models import loading
from mixsd.settings import Settings
from mixsd.storage import Journal
from mixsd.targets.stage import Mixer

BASE: dict[str, Any] = {"lam": 0.3, "gate": 0.1, "temperature": 0.0}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mixing": [
        {},
        {"temperature": 0.8},
        {"temperature": 1.0},
        {"lam": 0.0},
        {"gate": 0.0},
        {"lam": 0.5},
        {"lam": 0.5, "gate": 0.0},
        {"lam": 0.7},
    ],
    "retries": [
        {"lam": lam, "gate": gate, "retry": retry}
        for lam, gate in ((0.3, 0.1), (0.5, 0.1), (0.3, 0.0))
        for retry in ("restart", "from-break")
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", default="demo")
    parser.add_argument("--made", type=int, metavar="N", help="this many made-up facts instead")
    parser.add_argument("--set", choices=tuple(VARIANTS), default="mixing", help="which settings")
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = loading.locate("smollm2-135m").folder
    model = loading.load_to_read(folder, dtype=torch.float32, device=torch.device("cpu"))
    renderer = Renderer(loading.load_tokenizer(folder), model.config, model.generation_config)
    facts = made_facts(options.made) if options.made else corpus.load_facts(options.facts).facts
    print(f"{len(facts)} facts, {options.retries} retries, seed {options.seed}\n")
    print("| T | lambda | gate | retry | accepted at first | accepted | generated per accepted | naive kept | mean base NLL |")
    print("|---|---|---|---|---|---|---|---|---|")
    for changed in VARIANTS[options.set]:
        chosen = {**BASE, **changed}
        settings = Settings(facts="demo", max_new_tokens=48, retries=options.retries, seed=options.seed, **chosen).resolved
        with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "attempts.jsonl") as journal:
            mixer = Mixer(
                lambda: model, renderer, settings, get_verifier("contains"), loading.context_length(model.config), journal
            )
            targets = list(mixer.run(facts))
        accepted = [target for target in targets if target.accepted]
        first = sum(target.attempt == 0 for target in accepted)
        kept = sum(len(target.target_ids) for target in accepted)
        decoded = sum(target.decoded_tokens for target in targets)
        naive, gated = (sum(target.sources.count(source) for target in accepted) for source in "ng")
        nll = -sum(sum(target.base_logprobs) for target in accepted) / max(kept, 1)
        print(
            f"| {chosen['temperature']:g} | {chosen['lam']:g} | {chosen['gate']:g} | {settings.retry} | {first} "
            f"| {len(accepted)} of {len(targets)} | "
            f"{decoded / max(kept, 1):.1f} | {naive / max(naive + gated, 1):.0%} of {naive + gated} | {nll:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
