"""The training loop: full or LoRA fine-tuning under any objective, on top of accelerate and not of transformers' Trainer.

The Trainer gives less than mixsd promises, and bending it would take more code than this loop:
- the order of examples is a pure function of (seed, epoch, keys), not of a sampler's random state;
- the loss is normalized by the supervised tokens of the whole optimizer step, over all microbatches and processes;
- what is trained on may come from the model as it is at that step;
- a checkpoint is a plain model folder that appears atomically, and a resumed run is the undisturbed one, bit for bit on CPU;
- logits exist only for supervised tokens, a chunk at a time.

bf16 is autocast over fp32 weights, entered and left within each microbatch's forward pass: torch keeps its bf16 copies of the
weights until the outermost context ends. AdamW and linear warm-up are the paper's.
"""

import ctypes
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixsd.errors import MixsdError, UserError
from mixsd.models.compat import keep_activations, recompute_activations, text_config
from mixsd.models.cpu import fast_products, training_path
from mixsd.models.folder import check_savable, verify_model_folder
from mixsd.settings import Settings
from mixsd.storage import Journal, disk_errors, sweep_leftovers
from mixsd.training import checkpoints
from mixsd.training.examples import Example, microbatches, plan_epoch, steps_per_epoch
from mixsd.training.lora import Lora
from mixsd.training.objectives import Objective, Part, Student, Targets
from mixsd.training.ranks import Ranks
from mixsd.training.states import Reading, recomputed_alike
from mixsd.training.teacher import Rehearsal

# A checkpoint made under other values of these would go on as a different run.
_IDENTITY = ("seed", "lora", "lr", "epochs", "batch_size", "micro_batch", "warmup_steps", "weight_decay", "clip", "kl_reduction")
_REHEARSED = ("rehearse", "rehearse_tokens", "rehearse_loss")


@dataclass(frozen=True, slots=True)
class Step:
    """One finished optimizer step, and its line in log.jsonl.

    `step` and `epoch` count from 1; `loss` is the mean over the step's supervised `tokens` (nats), `grad_norm` is before clipping,
    `decoded` counts the tokens of rollouts, `rehearsed` and `rehearsal_loss` are those of the replies beside the targets.
    """

    step: int
    total: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    decoded: int = 0
    rehearsed: int = 0
    rehearsal_loss: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """What training leaves: `model` is plain (LoRA merged) and in the precision of the model that came in.

    `losses` are of all steps, those before a resume too; `dropped` names the overlong examples; `path` is as in `states.Reading`.
    """

    model: PreTrainedModel
    steps: int
    epochs: int
    losses: tuple[float, ...]
    dropped: tuple[str, ...]
    path: str


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    objective: Objective | Iterable[Example],
    *,
    settings: Settings,
    folder: Path,
    steps: int | None = None,
    rehearsal: Rehearsal | None = None,
    pinned: Callable[[], Collection[int]] = tuple,
    on_step: Callable[[Step], None] | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    on_path: Callable[[str, str], None] | None = None,
) -> TrainResult:
    """Train `model` (fp32 weights, changed in place) under `objective`, or go on where `folder` says a killed run stopped.

    Examples alone are targets under token NLL. `steps` ends the training early; `rehearsal` trains on the base
    model's replies beside. `pinned` names the checkpoints to be kept whatever `keep_checkpoints` says, asked after each one.

    Checkpoints go to folder/checkpoints, one line per step to folder/log.jsonl; the last step always leaves a checkpoint,
    which is (like the first) reloaded and checked. `on_step` and `on_checkpoint` (folder, step) are called in the main process,
    after the step or checkpoint is on disk; where a kill cut a checkpoint's call short, again at the resume. `on_path` is called
    for each kind of work with the way it is done, such as "packed" or "padded: REASON"; without it a reason is a warning.

    Raises:
        UserError: nothing to train on, an example too long, a checkpoint that is incomplete or of another training, out of
            memory or disk space, or a generation config that cannot be saved.
        MixsdError: the loss or gradient is not finite, or a merge or written checkpoint failed its check.
    """
    settings = settings.resolved
    with _memory_errors():
        if not hasattr(objective, "keys"):  # only an objective has keys; examples come in any iterable
            context = getattr(text_config(model.config), "max_position_embeddings", None)
            objective = Targets(cast(Iterable[Example], objective), context, settings.drop_overlong)
        training = _Training(model, cast(Objective, objective), settings, folder, on_path or _warn, steps)
        training.tokenizer, training.rehearsal = tokenizer, rehearsal
        training.pinned, training.on_step, training.on_checkpoint = pinned, on_step, on_checkpoint
        return training.finish(training.take_steps())


class _Training:
    """One call of `train`: what its phases share."""

    tokenizer: PreTrainedTokenizerBase | None
    rehearsal: Rehearsal | None
    pinned: Callable[[], Collection[int]]
    on_step: Callable[[Step], None] | None
    on_checkpoint: Callable[[Path, int], None] | None

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        settings: Settings,
        folder: Path,
        on_path: Callable[[str, str], None],
        steps: int | None,
    ) -> None:
        if model.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"training needs fp32 weights, not {model.dtype}: small updates would be rounded away")
        if not isinstance(settings.lr, float):
            raise ValueError(f"training needs a learning rate, not {settings.lr!r}")
        check_savable(model)
        ranks = Ranks(model.device if settings.device == "auto" else torch.device(settings.device))
        self.base, self.objective, self.settings, self.lr = model, objective, settings, settings.lr
        self.ranks, self.device = ranks, ranks.device
        self.checkpoints_folder, self.log = folder / "checkpoints", Journal(folder / "log.jsonl")
        wanted = settings.dtype if settings.train_dtype == "auto" else settings.train_dtype
        self.bf16 = wanted == "bf16" or (wanted == "auto" and self.device.type != "cpu")
        self.per_epoch = steps_per_epoch(len(objective.keys), settings.batch_size)
        whole = settings.epochs * self.per_epoch
        self.total = min(steps or whole, whole)
        self.verified = False

        cast(nn.Module, model).to(self.device)
        reading = Reading(model, objective.probe)
        if ranks.is_main:
            on_path("training", reading.path)
            on_path("linear layers in training", training_path(self.device))
        model.requires_grad_(True)
        self.lora = Lora(model, rank=settings.lora, seed=settings.seed) if settings.lora else None
        if settings.gradient_checkpointing:
            try:
                recompute_activations(model, recomputed_alike(model))
            except ValueError as error:
                raise UserError(f"--gradient-checkpointing: {error}") from error
        named = (self.lora.model if self.lora else model).named_parameters()
        self.parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self.optimizer = make_optimizer(self.parameters, lr=self.lr, weight_decay=settings.weight_decay)
        self.rng = checkpoints.first_rng_state(self.device, settings.seed + ranks.index)
        self.student = Student(model, self.lora, reading, self.device, self._precision)

    def take_steps(self) -> list[float]:
        """Take every step that no checkpoint holds yet; return the loss of all steps."""
        done = self._resume()
        logged = [row for _, row in self.log.read() if row.get("event") in ("step", "checkpoint") and row["step"] <= done]
        losses = [row["loss"] for row in logged if row["event"] == "step"]
        plan: list[list[int]] = []
        with self.log:
            if done and not any(row["event"] == "checkpoint" and row["step"] == done for row in logged):
                self._announce(done)  # the run was killed right after writing it
            for step in range(done + 1, self.total + 1):
                epoch, place = divmod(step - 1, self.per_epoch)
                if place == 0 or not plan:
                    plan = plan_epoch(self.settings.seed, epoch, self.objective.keys, self.settings.batch_size)
                record = self._step(step, epoch, plan[place])
                losses.append(record.loss)
                if self.ranks.is_main:
                    self.log.append({"event": "step", **asdict(record)})
                    if self.on_step:
                        self.on_step(record)
                if step % self.settings.checkpoint_every == 0 or step == self.total:
                    self._checkpoint(step)
                    self._announce(step)
        return losses

    def finish(self, losses: list[float]) -> TrainResult:
        """Merge for good and hand the model over."""
        model = self.lora.finish() if self.lora else self.base
        if self.settings.gradient_checkpointing:
            keep_activations(model)
        path = self.student.reading.path
        return TrainResult(model.eval(), self.total, self.settings.epochs, tuple(losses), self.objective.dropped, path)

    def _step(self, step: int, epoch: int, items: list[int]) -> Step:
        started = time.perf_counter()
        self.student.steps = step - 1
        part = self.objective.part(self.student, step, self._share(items))
        own = [part.tokens, len(part.examples), part.decoded]
        tokens, sequences, decoded = self.ranks.sum(torch.tensor(own, device=self.device)).tolist()
        weights = None
        if self.settings.spec.distilled and self.settings.kl_reduction == "sequence":
            weights = {example.key: tokens / sequences / len(example.target_ids) for example in part.examples}
        loss = self._backward(part, tokens, weights) / tokens
        rehearsed, beside = 0, None
        if self.rehearsal is not None:
            # Every process picks the same replies and takes its share of them.
            whole = self.rehearsal.part(self.student, step, tokens)
            rehearsed = whole.tokens
            total = self._backward(replace(whole, examples=self._share(whole.examples)), tokens)
            beside = total / rehearsed if rehearsed else None
        self.ranks.sum_gradients(self.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise MixsdError(f"step {step}: loss {loss}, gradient norm {norm}: not finite, so training stops; try a smaller --lr")
        lr = learning_rate(step, lr=self.lr, warmup_steps=self.settings.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = round(time.perf_counter() - started, 3)
        return Step(step, self.total, epoch + 1, loss, lr, norm, tokens, seconds, decoded, rehearsed, beside)

    def _share(self, items: list[Any]) -> list[Any]:
        return items[self.ranks.index :: self.ranks.count]

    def _backward(self, part: Part, tokens: int, weights: dict[str, float] | None = None) -> float:
        """Add the gradient of the part's loss / `tokens`; return the loss, summed over all processes.

        `weights` multiply the tokens of an example, by its key. Dropout draws from the training's own stream.
        """
        self.base.train()
        # No microbatch larger than a process's share, so that all have work.
        size = min(self.settings.micro_batch or self.settings.batch_size, math.ceil(self.settings.batch_size / self.ranks.count))
        total = torch.zeros((), dtype=torch.float64 if self.device.type != "mps" else torch.float32, device=self.device)
        for examples in microbatches(part.examples, size):
            with fast_products(self.base), checkpoints.own_randomness(self.device, self.rng):
                with self._precision():
                    values = part.loss(self.student, self.student.reading.states(self.base, examples), examples)
                    if weights:
                        own = [weights[example.key] for example in examples for _ in example.target_ids]
                        values = values * torch.tensor(own, dtype=values.dtype, device=values.device)
                    loss = values.sum()
                (loss / tokens).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return self.ranks.sum(total).item()

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def _checkpoint(self, step: int) -> None:
        with suppress(
            OSError, AttributeError
        ):  # glibc gives back what it has freed but kept: a checkpoint needs room after a step
            ctypes.CDLL(None).malloc_trim(0)
        rng = self.ranks.gather(self.rng)
        if self.ranks.is_main:
            state = checkpoints.TrainerState(
                step=step,
                identity=self._identity(),
                optimizer=_state_of(self.optimizer, self.parameters),
                rng={f"{name}.{rank}": tensor for rank, states in enumerate(rng) for name, tensor in states.items()},
                adapter=self.lora.state() if self.lora else None,
            )
            with self._plain_model() as plain:
                checkpoints.write_checkpoint(self.checkpoints_folder, plain, self.tokenizer, state)
                checkpoints.tidy(self.checkpoints_folder, self.settings.keep_checkpoints, self.pinned())
        self.ranks.wait()

    def _announce(self, step: int) -> None:
        """Check a checkpoint, hand it to the caller, and only then log it: a kill before that repeats all three."""
        if not self.ranks.is_main:
            return
        folder = checkpoints.checkpoint_folder(self.checkpoints_folder, step)
        # The first, so that a folder that cannot be read back is noticed early; the last, since it is the result.
        if not self.verified or step == self.total:
            with self._plain_model() as plain:
                verify_model_folder(folder, plain)
            self.verified = True
        if self.on_checkpoint:
            self.on_checkpoint(folder, step)
        self.log.append({"event": "checkpoint", "step": step})

    @contextmanager
    def _plain_model(self) -> Iterator[PreTrainedModel]:
        if self.lora is None:
            yield self.base
        else:
            with self.lora.merged() as plain:
                yield plain

    def _resume(self) -> int:
        """Put back the newest checkpoint, if there is one, and return its step."""
        if self.ranks.is_main and self.checkpoints_folder.is_dir():
            with disk_errors(self.checkpoints_folder):
                sweep_leftovers(self.checkpoints_folder)
                checkpoints.tidy(self.checkpoints_folder, self.settings.keep_checkpoints, self.pinned())
        self.ranks.wait()
        step = 0
        if found := checkpoints.list_checkpoints(self.checkpoints_folder):
            step, newest = found[-1]
            state = checkpoints.read_state(newest)
            checkpoints.check_identity(newest, state.identity, self._identity())
            if self.lora and state.adapter is not None:
                checkpoints.put_back(self.lora.state(), state.adapter, newest)
            else:
                checkpoints.load_weights(self.base, newest)
            checkpoints.put_back(_state_of(self.optimizer, self.parameters), state.optimizer, newest)
            self.rng = checkpoints.own_rng_state(state.rng, self.rng, self.ranks.index, newest)
        if self.ranks.is_main:
            checkpoints.trim_log(self.log.path, step)
        self.ranks.wait()
        return step

    def _identity(self) -> dict[str, Any]:
        names = _IDENTITY + (_REHEARSED if self.rehearsal else ())
        return {
            **{name: getattr(self.settings, name) for name in names},
            "train_dtype": "bf16" if self.bf16 else str(self.base.dtype).removeprefix("torch."),
            "processes": self.ranks.count,
            "examples": self.objective.identity,
        }


def _warn(work: str, path: str) -> None:
    if ": " in path:
        warnings.warn(f"{work}: {path}", stacklevel=4)


def learning_rate(step: int, *, lr: float, warmup_steps: int) -> float:
    """The rate of one optimizer step (from 1): lr * step / warmup_steps up to lr. No scheduler, whose state a resume could lose."""
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr


def make_optimizer(parameters: dict[str, nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """The paper's AdamW. It does not say which tensors decay; as is usual, matrices do and vectors (norms, biases) do not."""
    matrices = [parameter for parameter in parameters.values() if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values())
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=fused)
    # As its first step would make them; made now they find their place before the activations take it, so the peak is lower.
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _state_of(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's own tensors as 'parameter/field'."""
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    return {f"{name}/{field}": tensor.detach() for name, state in states.items() for field, tensor in state.items()}


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn running out of memory, on a device or in the main memory, into a `UserError` that names the ways out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's allocators for the CPU and for MPS raise a bare RuntimeError.
        bare = any(words in str(error) for words in ("can't allocate memory", "out of memory"))
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bare):
            raise
        raise UserError(
            "out of memory in training: lower --micro-batch, pass --gradient-checkpointing, train adapters (--lora 16), "
            "or choose another --device"
        ) from error
