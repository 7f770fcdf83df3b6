"""MixSD-KL: mixed targets as in MixSD, and at each of their positions the teacher's distribution instead of the token (E.6).

The teacher is the expert conditional everywhere, or at each position the conditional that was picked there. Since both are the
frozen base model's and the targets are fixed, the teacher's top k can be computed once, before training (`remember`), and training
holds one model. A divergence that needs more than the teacher's top k has the teacher beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from mixsd.decoding.requests import NAIVE
from mixsd.errors import UserError
from mixsd.run.session import Session
from mixsd.storage import atomic_folder
from mixsd.targets.reading import accepted_targets
from mixsd.training.examples import Example, usable
from mixsd.training.losses import Divergence, TeacherStates, TeacherTopK, chunked_divergence, teacher_topk
from mixsd.training.objectives import Part, Student, example_of
from mixsd.training.states import Reading, States
from mixsd.training.teacher import Teacher

_AT_ONCE = 8  # targets per forward pass of the teacher
_READ_AT_ONCE = 64  # targets in one file of what is remembered

# From examples to the teacher's states.
Read = Callable[[Sequence[Example]], States]


@dataclass(frozen=True)
class Distilled:
    """A target with what its teacher sees. `sources`: one character per token, as in `decoding.requests`."""

    example: Example
    expert_ids: tuple[int, ...]
    sources: str


@dataclass
class DistilledTargets:
    """The objective of MixSD-KL; `teacher` is a model, or the folder of what one said (see `remember`).

    Raises `UserError` for targets that cannot be trained on, and for a divergence that a remembered teacher does not allow.
    """

    given: Iterable[Distilled]
    divergence: Divergence
    picked: bool
    teacher: Teacher | Path
    context: int | None = None
    drop_overlong: bool = False
    targets: list[Distilled] = field(init=False)
    dropped: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        given = list(self.given)
        # The teacher reads more than the student, so its length is what must fit.
        behind = [Example(one.example.key, one.expert_ids, one.example.target_ids) for one in given]
        kept, self.dropped = usable(behind, self.context, drop_overlong=self.drop_overlong)
        self.targets = [one for one in given if one.example.key in {example.key for example in kept}]
        self.keys = [one.example.key for one in self.targets]
        self.probe = min((one.example for one in self.targets), key=len)
        self.lengths = [len(one.example.target_ids) for one in self.targets]
        self.identity = hashlib.blake2b(repr((self.targets, self.divergence, self.picked)).encode(), digest_size=16).hexdigest()
        self._by_key = {one.example.key: one for one in self.targets}
        self._memory = _Memory(self.teacher, self.keys) if isinstance(self.teacher, Path) else None

    def part(self, student: Student, step: int, items: Sequence[int]) -> Part:
        """The items' targets, at every step the same."""

        def loss(now: Student, states: States, examples: Sequence[Example]) -> Tensor:
            known: TeacherStates | TeacherTopK
            if self._memory is not None:
                known = self._memory.recall(examples, states.rows.device)
            else:
                assert not isinstance(self.teacher, Path)
                teacher = self.teacher
                own = teacher_states(
                    [self._by_key[example.key] for example in examples], self.picked, lambda read: teacher.states(now, read)
                )
                known = TeacherStates(own.rows, own.head)
            return chunked_divergence(states.rows, states.head, known, self.divergence, states.chunk)

        return Part([self.targets[item].example for item in items], loss)


def teacher_states(targets: Sequence[Distilled], picked: bool, read: Read) -> States:
    """The teacher's states at each token of the targets: the expert's, or those of the conditional picked there."""
    expert = read([Example(one.example.key, one.expert_ids, one.example.target_ids) for one in targets])
    naive = torch.tensor([source == NAIVE for one in targets for source in one.sources], device=expert.rows.device)
    if not picked or not naive.any():
        return expert
    own = read([one.example for one in targets])
    return States(torch.where(naive[:, None], own.rows, expert.rows), expert.head, expert.chunk)


@torch.no_grad()
def remember(
    folder: Path,
    targets: Sequence[Distilled],
    k: int,
    picked: bool,
    load_model: Callable[[], PreTrainedModel],
    on_done: Callable[[int], None] = lambda count: None,
) -> None:
    """Write the teacher's top k at each token of the targets; what an earlier call has written is kept.

    One folder of tensors for each few targets, so a kill costs those in hand. About 512 bytes per token at k = 64.
    """
    read: Read | None = None
    for start in range(0, len(targets), _READ_AT_ONCE):
        own = targets[start : start + _READ_AT_ONCE]
        place = _piece(folder, start)
        if not place.is_dir():
            if read is None:
                model = load_model().eval()
                read = partial(Reading(model, min((one.example for one in own), key=len)).states, model)
            found: dict[str, Tensor] = {}
            for at in range(0, len(own), _AT_ONCE):
                some = own[at : at + _AT_ONCE]
                states = teacher_states(some, picked, read)
                known = teacher_topk(states.rows, states.head, k, states.chunk)
                lengths = [len(one.example.target_ids) for one in some]
                for number, (ids, logprobs) in enumerate(
                    zip(known.ids.split(lengths), known.logprobs.split(lengths), strict=True), start + at
                ):
                    found |= {f"{number}.ids": ids.cpu().contiguous(), f"{number}.logprobs": logprobs.cpu().contiguous()}
            with atomic_folder(place) as building:
                save_file(found, building / "teacher.safetensors")
        on_done(len(own))


def distilled(session: Session, teacher: Teacher) -> DistilledTargets:
    """The objective of MixSD-KL on the session's accepted targets; what can be remembered of the teacher is, in the run folder.

    Raises:
        UserError: there is no accepted target of the run's facts.
    """
    settings = session.settings
    facts = {fact.id: fact for fact in session.facts}
    targets = [
        Distilled(example_of(target), tuple(session.renderer.expert(facts[target.id])), target.sources)
        for target in accepted_targets(session)
        if target.id in facts
    ]
    if not targets:
        raise UserError(f"{session.run.targets_file}: holds no accepted target of the run's facts to train on")
    divergence, picked = Divergence.of(settings), settings.kl_teacher == "picked"
    kept = session.run.folder / "teacher" if divergence.support == "teacher" else None
    objective = DistilledTargets(targets, divergence, picked, kept or teacher, session.context, settings.drop_overlong)
    if kept:
        with session.watcher.task("reading the teacher", len(objective.targets)) as task:
            remember(kept, objective.targets, divergence.k, picked, session.load_to_read, task.advance)
    return objective


class _Memory:
    """What `remember` wrote, read a few targets at a time."""

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        self._folder = folder
        self._number = {key: number for number, key in enumerate(keys)}

    def recall(self, examples: Sequence[Example], device: torch.device) -> TeacherTopK:
        ids, logprobs = [], []
        for example in examples:
            number = self._number[example.key]
            file = _piece(self._folder, number - number % _READ_AT_ONCE) / "teacher.safetensors"
            if not file.is_file():
                raise UserError(f"{file}: what the teacher said is gone; delete {self._folder} to have it computed anew")
            with safe_open(file, framework="pt") as tensors:
                ids.append(tensors.get_tensor(f"{number}.ids"))
                logprobs.append(tensors.get_tensor(f"{number}.logprobs"))
        return TeacherTopK(torch.cat(ids).to(device), torch.cat(logprobs).to(device))


def _piece(folder: Path, start: int) -> Path:
    return folder / f"targets-{start:06d}"
