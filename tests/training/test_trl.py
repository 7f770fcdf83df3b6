"""TRL's SFTTrainer as a reference: the same losses on the same ids, and the documented way of handing it our targets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd import randomness
from mixsd.targets.target import Target
from mixsd.training import Example, train
from tests.training.tiny import make_examples, make_model, make_settings, make_tokenizer

trl = pytest.importorskip("trl", reason="trl is not installed (pip install 'mixsd[dev]')")
pytest.importorskip("datasets", reason="datasets is not installed (pip install 'mixsd[data]')")

DOCUMENT = Path(__file__).parents[2] / "docs" / "trainers.md"


class Recorder(trl.SFTTrainer):  # type: ignore[misc]
    """Keeps each step's loss unrounded, and warms up as mixsd does: the first step already at lr / warmup_steps."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        warmup = self.args.warmup_steps
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: min(1.0, (step + 1) / warmup)
        )
        return self.lr_scheduler


def trl_losses(examples: list[Example], folder: Path, settings: Any) -> list[float]:
    """The loss of every step of one epoch over the examples, in their order."""
    from datasets import Dataset

    rows = [
        {
            "input_ids": [*example.prompt_ids, *example.target_ids],
            "completion_mask": [0] * len(example.prompt_ids) + [1] * len(example.target_ids),
        }
        for example in examples
    ]
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=1,
        learning_rate=settings.lr,
        warmup_steps=settings.warmup_steps,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        train_sampling_strategy="sequential",
        completion_only_loss=True,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Recorder(
        model=make_model("llama-tied"), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer()
    )
    trainer.train()
    losses: list[float] = trainer.losses
    return losses


def test_twenty_steps_have_trls_losses(tmp_path: Path) -> None:
    settings = make_settings(epochs=1, batch_size=4, micro_batch=2, lr=3e-3, warmup_steps=5, checkpoint_every=100)
    # Ten times the same texts, so that there is something to learn within an epoch.
    examples = [replace(example, key=f"{example.key}-{time}") for time in range(10) for example in make_examples(8)]
    order = randomness.order(settings.seed, [example.key for example in examples], epoch=0)
    ours = train(make_model("llama-tied"), None, examples, settings=settings, folder=tmp_path / "ours").losses
    theirs = trl_losses([examples[index] for index in order], tmp_path / "theirs", settings)
    assert len(ours) == len(theirs) == 20
    assert ours[-1] < 0.95 * ours[0]
    assert ours == pytest.approx(theirs, abs=1e-4)


def target(key: str, prompt: list[int], reply: list[int], *, accepted: bool = True) -> Target:
    return Target(
        id=key,
        lam=0.3,
        sample=0,
        attempt=1,
        prompt_ids=prompt,
        target_ids=reply,
        sources="e" * len(reply),
        base_logprobs=[0.0] * len(reply),
        decoded_tokens=len(reply),
        text="",
        accepted=accepted,
        reason=None,
    )


def test_the_documented_block_supervises_the_target_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The stop token 2 is the tokenizer's pad, stands in a prompt too, and ends each reply.
    targets = [
        target("one", [1, 5, 2, 6], [7, 8, 2]),
        target("refused", [1, 5], [9, 9, 9, 2], accepted=False),
        target("two", [1, 5], [10, 11, 12, 13, 2]),
    ]
    run, model = tmp_path / "runs" / "acme", tmp_path / "path" / "to" / "base-model"
    run.mkdir(parents=True)
    (run / "targets.jsonl").write_text("".join(json.dumps(item.to_json()) + "\n" for item in targets))
    make_model("llama-tied").save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, str(DOCUMENT), "exec"), names)

    trainer = names["trainer"]
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(trainer.train_dataset))])
    accepted = [item for item in targets if item.accepted]
    assert len(batch["labels"]) == len(accepted)
    for labels, ids, item in zip(batch["labels"].tolist(), batch["input_ids"].tolist(), accepted, strict=True):
        begin, end = len(item.prompt_ids), len(item.prompt_ids) + len(item.target_ids)
        assert labels[begin:end] == item.target_ids
        assert set(labels[:begin] + labels[end:]) <= {-100}
        assert ids[:end] == item.prompt_ids + item.target_ids
