"""A training step beside TRL's: the same ids in the same order, one run, step by step in turn.

    python bench/training.py                          # 20 steps each; both precisions, with and without gradient checkpointing
    python bench/training.py --trl OTHER/bin/python   # TRL from another environment; or: make bench-training

The built-in model learns KGFact's statements (prompts of about 45 tokens, targets of about 20, stop token included) at batch 16, all
weights, AdamW with betas 0.9 and 0.95, clip 1, 20 steps of warm-up. TRL's SFTTrainer gets ids and a completion mask, in the order in
which `mixsd.training.train` takes them. Each trainer has a process of its own, so that its peak memory is its own, and both take one
step at a time in turn, so that a machine whose speed drifts is as slow for one as for the other.

`supervised_tokens_per_s` counts the targets' tokens over the steps' wall time, the first step left out (it makes kernels and the
optimizer's state). `peak_mb` is the process's peak until the last step, `peak_end_mb` with what comes after: for ours, the checkpoint
written and verified; TRL's saves nothing. `losses` are the steps' mean NLL; in fp32 they have to agree to 1e-4.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

AGREE = 1e-4
MOST_MEMORY, LEAST_SPEED = 0.7, 1.5
LR, WARMUP, DECAY, CLIP = 1e-5, 20, 0.01, 1.0


def tell(**values: Any) -> None:
    """Send a line to the parent, on the standard output that the trainers do not see (`main` moves it)."""
    os.write(3, (json.dumps(values) + "\n").encode())


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6, 1)


def ours(task: dict[str, Any]) -> None:
    import torch

    from mixsd.models import loading
    from mixsd.settings import Settings
    from mixsd.training import Example, Step, train

    model = loading.load_model(Path(task["folder"]), dtype=torch.float32, device=torch.device("cpu"))
    examples = [Example(key, tuple(prompt), tuple(target)) for key, prompt, target in task["examples"]]
    settings = Settings(
        epochs=1,
        batch_size=task["batch"],
        micro_batch=task["micro_batch"],
        lr=LR,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        clip=CLIP,
        checkpoint_every=10**6,
        train_dtype=task["precision"],
        gradient_checkpointing=task["checkpointing"],
        device="cpu",
    )

    def took(step: Step) -> None:
        tell(loss=step.loss, tokens=step.tokens, seconds=step.seconds, peak_mb=peak_mb())
        sys.stdin.readline()  # after the last step too, so that its checkpoint is not written while the other takes a step

    sys.stdin.readline()
    with tempfile.TemporaryDirectory() as scratch:
        train(model, None, examples, settings=settings, folder=Path(scratch), on_step=took)
    tell(peak_mb=peak_mb())


def trls(task: dict[str, Any]) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **options: Any) -> None:
            sys.stdin.readline()
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **options: Any) -> None:
            tell(**seen, seconds=time.perf_counter() - self.started, peak_mb=peak_mb())

        def on_train_end(self, *args: Any, **options: Any) -> None:
            sys.stdin.readline()

    class Recorder(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            seen["tokens"] = int((inputs["labels"] != -100).sum())
            loss = super().training_step(model, inputs, *args, **options)
            seen["loss"] = loss.item()
            return loss

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            # transformers' own warm-up starts at a rate of 0.
            rate = lambda step: min(1.0, (step + 1) / WARMUP)  # noqa: E731
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
            return self.lr_scheduler

    seen: dict[str, Any] = {}
    rows = [task["examples"][index] for index in task["order"]]
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=task["batch"],
        num_train_epochs=1,
        learning_rate=LR,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        train_sampling_strategy="sequential",
        completion_only_loss=True,
        max_length=None,
        gradient_checkpointing=task["checkpointing"],
        bf16=task["precision"] == "bf16",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Recorder(
        model=AutoModelForCausalLM.from_pretrained(task["folder"], dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(
            [
                {"input_ids": prompt + target, "completion_mask": [0] * len(prompt) + [1] * len(target)}
                for _, prompt, target in rows
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(task["folder"]),
        callbacks=[Turns()],
    )
    trainer.train()
    tell(peak_mb=peak_mb())


class Worker:
    """A trainer's process, from outside."""

    def __init__(self, trainer: str, python: str, task: dict[str, Any], threads: int) -> None:
        self.trainer = trainer
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(task, file)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, __file__, "--worker", trainer, "--task", file.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def step(self) -> dict[str, Any]:
        """What it says of its next step, or, after the last one, of its end."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.trainer} ended: {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


def task_of(options: argparse.Namespace) -> dict[str, Any]:
    """The model's folder and the examples with mixsd's order of them, as token ids."""
    from transformers import AutoConfig, GenerationConfig

    import mixsd
    from mixsd import randomness
    from mixsd.facts.prompts import Renderer
    from mixsd.models import loading

    folder = loading.locate("smollm2-135m").folder
    tokenizer = loading.load_tokenizer(folder)
    renderer = Renderer(tokenizer, AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder))
    examples = []
    for fact in islice(mixsd.corpus("kgfact", "large", seed=0).facts(), options.steps * options.batch):
        reference = renderer.reference(fact)
        if options.targets == "statement":
            # With the stop token that the reference ends in.
            reference = [*tokenizer.encode(fact.statement, add_special_tokens=False), reference[-1]]
        examples.append((fact.id, list(renderer.naive(fact.question)), list(reference)))
    order = randomness.order(0, [key for key, _, _ in examples], epoch=0)
    return {"folder": str(folder), "examples": examples, "order": list(order), "batch": options.batch}


def compare(options: argparse.Namespace, task: dict[str, Any], precision: str, checkpointing: bool) -> list[dict[str, Any]]:
    """Both trainers over all steps in turn; a row each."""
    task |= {"precision": precision, "checkpointing": checkpointing, "micro_batch": options.micro_batch}
    workers = [
        Worker("mixsd", sys.executable, task, options.threads),
        Worker("trl", options.trl, task, options.threads),
    ]
    steps: dict[str, list[dict[str, Any]]] = {worker.trainer: [] for worker in workers}
    for number in range(options.steps):
        for worker in workers if number % 2 else workers[::-1]:
            steps[worker.trainer].append(worker.step())
            time.sleep(0.3)  # until its threads have gone to sleep
        last = {trainer: f"{taken[-1]['loss']:.5f} {taken[-1]['seconds']:.1f} s" for trainer, taken in steps.items()}
        print(f"{precision}, checkpointing {checkpointing}, step {number + 1}: {last}", file=sys.stderr, flush=True)
    rows = []
    for worker in workers:
        taken = steps[worker.trainer]
        rows.append(
            {
                "trainer": worker.trainer,
                "precision": precision,
                "gradient_checkpointing": checkpointing,
                "supervised_tokens_per_s": round(
                    sum(step["tokens"] for step in taken[1:]) / sum(step["seconds"] for step in taken[1:]), 2
                ),
                "peak_mb": taken[-1]["peak_mb"],
                "peak_end_mb": worker.step()["peak_mb"],
                "losses": [step["loss"] for step in taken],
                "tokens": [step["tokens"] for step in taken],
                "seconds": [round(step["seconds"], 3) for step in taken],
            }
        )
        worker.process.wait()
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours beside TRL's, for each pair of rows."""
    pairs = []
    for mine, theirs in zip(rows[::2], rows[1::2], strict=True):
        pairs.append(
            {
                "precision": mine["precision"],
                "gradient_checkpointing": mine["gradient_checkpointing"],
                "speed_ratio": round(mine["supervised_tokens_per_s"] / theirs["supervised_tokens_per_s"], 2),
                "memory_ratio": round(mine["peak_mb"] / theirs["peak_mb"], 3),
                "loss_difference": max(abs(one - other) for one, other in zip(mine["losses"], theirs["losses"], strict=True)),
            }
        )
    return pairs


def show(rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> None:
    head = ("trainer", "precision", "gradient_checkpointing", "supervised_tokens_per_s", "peak_mb", "peak_end_mb")
    print(*(f"{name:>{len(name)}}" for name in head), sep="  ")
    for row in rows:
        print(*(f"{row[name]!s:>{len(name)}}" for name in head), sep="  ")
    for pair in pairs:
        exact = pair["precision"] == "fp32"
        agreement = f"losses {'agree' if pair['loss_difference'] <= AGREE else 'DIFFER'} to {pair['loss_difference']:.1e}"
        print(
            f"{pair['precision']}, gradient checkpointing {pair['gradient_checkpointing']}: {pair['speed_ratio']} times TRL's speed "
            f"({LEAST_SPEED} wanted), {pair['memory_ratio']} of its memory ({MOST_MEMORY} wanted), "
            + (agreement if exact else f"losses within {pair['loss_difference']:.1e} (bf16)")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", default=sys.executable, help="the Python that has TRL 1.16")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=None, help="of mixsd; TRL takes the batch in one pass")
    parser.add_argument("--targets", choices=["statement", "reference"], default="statement")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "training.json")
    parser.add_argument("--worker", choices=["mixsd", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        os.dup2(1, 3)
        os.dup2(2, 1)  # what a trainer prints is for people
        task = json.loads(options.task.read_text())
        options.task.unlink()
        (ours if options.worker == "mixsd" else trls)(task)
        return
    if options.trl == sys.executable and importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed here: pip install trl==1.16.0, or name a Python that has it with --trl")
    task = task_of(options)
    lengths = {name: sum(len(e[place]) for e in task["examples"]) / len(task["examples"]) for name, place in _PARTS.items()}
    rows: list[dict[str, Any]] = []
    for precision in options.precisions:
        for checkpointing in options.checkpointing:
            rows += compare(options, task, precision, checkpointing == "on")
    pairs = summary(rows)
    result = {
        "steps": options.steps,
        "batch": options.batch,
        "micro_batch": options.micro_batch,
        "threads": options.threads,
        "mean_tokens": lengths,
        "pairs": pairs,
        "rows": rows,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"mean tokens: {lengths}; {options.threads} threads")
    show(rows, pairs)


_PARTS = {"prompt": 1, "target": 2}

if __name__ == "__main__":
    main()
