"""Learning what the expert conditional would say: MixSD-KL on mixed targets, OPSD and OPSD-NLL on the student's own replies.

MixSD-KL (E.6) trains on mixed targets as MixSD does, and at each of their positions on the teacher's distribution instead of the
token. The teacher is the expert conditional everywhere, or at each position the conditional that was picked there. Both are the
frozen base model's and the targets are fixed, so the teacher's top k can be computed once, before training (`remember`), and
training holds one model. A divergence that needs more than the teacher's top k has the teacher beside it.

OPSD and OPSD-NLL (section 5) have the student, as it is at that step, answer the facts of the step; the teacher reads the same reply
behind the expert prompt. OPSD's loss is the divergence of the two distributions at each token. OPSD-NLL answers once, greedily, and
its loss is the NLL of the teacher's likeliest token at each position; the paper's words leave room for a token drawn from the
teacher's distribution, which is the other choice.
"""

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

from mixsd.decoding.engine import decode_all
from mixsd.decoding.requests import NAIVE, Request, Sampling
from mixsd.errors import MixsdError, UserError
from mixsd.randomness import uniforms
from mixsd.run.session import Session
from mixsd.storage import atomic_folder
from mixsd.targets.attempts import reply_limit
from mixsd.targets.reading import accepted_targets
from mixsd.training import ranks
from mixsd.training.examples import Example, usable
from mixsd.training.losses import (
    Divergence,
    States,
    TeacherTopK,
    chunked_divergence,
    chunked_nll,
    evaluating,
    teacher_sample,
    teacher_topk,
)
from mixsd.training.objectives import Part, Student, example_of
from mixsd.training.states import Reading
from mixsd.training.teacher import FrozenBase

_AT_ONCE = 8  # targets per forward pass of the teacher
_READ_AT_ONCE = 64  # targets in one file of what is remembered

Read = Callable[[Sequence[Example]], States]  # from examples to the teacher's states


@dataclass(frozen=True)
class Distilled:
    """A target with what its teacher sees. `sources`: one character per token, as in `decoding.requests`."""

    example: Example
    expert_ids: tuple[int, ...]
    sources: str

    @property
    def behind(self) -> Example:
        """The target behind the expert prompt."""
        return Example(self.example.key, self.expert_ids, self.example.target_ids)


@dataclass
class DistilledTargets:
    """The objective of MixSD-KL; `teacher` is a model, or the folder of what one said (see `remember`).

    Targets that cannot be trained on, and a divergence that a remembered teacher does not allow, are `UserError`s.
    """

    given: Iterable[Distilled]
    divergence: Divergence
    picked: bool
    teacher: FrozenBase | Path
    context: int | None = None
    drop_overlong: bool = False
    dropped: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        given = list(self.given)
        # The teacher reads more than the student, so its length is what must fit.
        kept, self.dropped = usable([one.behind for one in given], self.context, drop_overlong=self.drop_overlong)
        self._numbers = {example.key: number for number, example in enumerate(kept)}
        self.targets = [one for one in given if one.example.key in self._numbers]
        self.keys: Sequence[str] = list(self._numbers)
        self.probe = min((one.example for one in self.targets), key=len)
        self.lengths: Sequence[int] | None = [len(one.example.target_ids) for one in self.targets]
        self.identity = _hash((self.targets, self.divergence, self.picked))

    def part(self, student: Student, step: int, items: Sequence[int]) -> Part:
        """The items' targets, at every step the same."""

        def loss(now: Student, states: States, examples: Sequence[Example]) -> Tensor:
            known: States | TeacherTopK
            numbers = [self._numbers[example.key] for example in examples]
            if isinstance(self.teacher, Path):
                known = _recall(self.teacher, numbers, states.rows.device)
            else:
                known = teacher_states([self.targets[n] for n in numbers], self.picked, partial(self.teacher.states, now))
            return chunked_divergence(states.rows, states.head, known, self.divergence, states.chunk)

        return Part([self.targets[item].example for item in items], loss)


def teacher_states(targets: Sequence[Distilled], picked: bool, read: Read) -> States:
    """The teacher's states at each token of the targets: the expert's, or those of the conditional picked there."""
    expert = read([one.behind for one in targets])
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
    """Write the teacher's top k at each token of the targets, a folder for each few; what an earlier call has written is kept."""
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
                for name, tensor in (("ids", known.ids), ("logprobs", known.logprobs)):
                    parts = enumerate(tensor.cpu().split(lengths), start + at)
                    found |= {f"{number}.{name}": part.contiguous() for number, part in parts}
            with atomic_folder(place) as building:
                save_file(found, building / "teacher.safetensors")
        on_done(len(own))


def _recall(folder: Path, numbers: Sequence[int], device: torch.device) -> TeacherTopK:
    """What `remember` wrote of these targets."""
    ids, logprobs = [], []
    for number in numbers:
        file = _piece(folder, number - number % _READ_AT_ONCE) / "teacher.safetensors"
        if not file.is_file():
            raise UserError(f"{file}: what the teacher said is gone; delete {folder} to have it computed anew")
        with safe_open(file, framework="pt") as tensors:
            ids.append(tensors.get_tensor(f"{number}.ids"))
            logprobs.append(tensors.get_tensor(f"{number}.logprobs"))
    return TeacherTopK(torch.cat(ids).to(device), torch.cat(logprobs).to(device))


def _piece(folder: Path, start: int) -> Path:
    return folder / f"targets-{start:06d}"


def distilled(session: Session, teacher: FrozenBase) -> DistilledTargets:
    """The objective of MixSD-KL on the session's accepted targets (none is a `UserError`); what can be remembered of the teacher is."""
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


@dataclass(frozen=True)
class RolloutPrompt:
    """A fact as on-policy training asks it: both prompts, and the longest reply in tokens."""

    key: str
    naive_ids: tuple[int, ...]
    expert_ids: tuple[int, ...]
    limit: int


@dataclass
class OnPolicy:
    """The objective of OPSD and OPSD-NLL. Nothing to ask is a `UserError`, a loss on stale rollouts a `MixsdError`.

    `loss` is a divergence (OPSD), or which of the teacher's tokens is to be predicted: 'top1' or 'sampled' (OPSD-NLL).
    `stops`: see `decoding.requests.Sampling`; at a `temperature` above 0 the full softmax is sampled.
    """

    facts: Sequence[RolloutPrompt]
    teacher: FrozenBase
    samples: int
    temperature: float
    seed: int
    stops: dict[int, int]
    token_budget: int
    loss: Divergence | str
    dropped: tuple[str, ...] = ()
    lengths: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.facts:
            raise UserError("there is no usable fact to train on")
        self.keys: Sequence[str] = [fact.key for fact in self.facts]
        self.identity = _hash((self.samples, self.temperature, sorted(self.stops.items()), self.loss, list(self.facts)))
        shortest = min((fact.naive_ids for fact in self.facts), key=len)
        self.probe = Example("probe", shortest[:-1], shortest[-1:])
        self._expert = {fact.key: fact.expert_ids for fact in self.facts}

    def part(self, student: Student, step: int, items: Sequence[int]) -> Part:
        """Answers of the student to these facts, and a loss on them that holds until its next step."""
        examples = self._roll_out(student, step, [self.facts[item] for item in items])
        made_at = student.steps

        def loss(now: Student, states: States, own: Sequence[Example]) -> Tensor:
            if now.steps != made_at:
                raise MixsdError(f"stale rollouts: decoded after {made_at} optimizer steps, trained on after {now.steps}")
            return self._loss(now, step, states, own)

        return Part(examples, loss, sum(len(example.target_ids) for example in examples))

    def _roll_out(self, student: Student, step: int, facts: list[RolloutPrompt]) -> list[Example]:
        requests = []
        for fact in facts:
            for sample in range(self.samples):
                noise = None
                if self.temperature:
                    noise = uniforms(self.seed, "rollout", fact.key, sample=sample, attempt=step, n=fact.limit)
                requests.append(Request(f"{fact.key}/{sample}", list(fact.naive_ids), fact.limit, noise=noise))
        if not requests:
            return []
        with evaluating(student.model), student.precision():
            sampling = Sampling(self.stops, temperature=self.temperature)
            decodings = decode_all(student.model, requests, sampling, token_budget=self.token_budget)
            found = {decoding.key: tuple(decoding.ids) for decoding in decodings}
        return [Example(request.key, tuple(request.naive_ids), found[request.key]) for request in requests]

    def _loss(self, student: Student, step: int, states: States, examples: Sequence[Example]) -> Tensor:
        behind = [Example(one.key, self._expert[one.key.rpartition("/")[0]], one.target_ids) for one in examples]
        teacher = self.teacher.states(student, behind)
        if isinstance(self.loss, Divergence):
            return chunked_divergence(states.rows, states.head, teacher, self.loss, states.chunk)
        if self.loss == "top1":
            labels = teacher_topk(teacher.rows, teacher.head, 1, teacher.chunk).ids[:, 0].long()
        else:
            drawn = [uniforms(self.seed, "noise", one.key, attempt=step, n=len(one.target_ids)) for one in examples]
            noise = torch.tensor([number for numbers in drawn for number in numbers], dtype=torch.float64)
            labels = teacher_sample(teacher.rows, teacher.head, noise, teacher.chunk)
        return chunked_nll(states.rows, states.head, labels, states.chunk)


def on_policy(session: Session, teacher: FrozenBase) -> OnPolicy:
    """The objective of OPSD and OPSD-NLL on the session's facts (none is a `UserError`); why some cannot be asked is logged."""
    settings = session.settings
    asked, reasons = [], {}
    for fact in session.facts:
        limit, reason = reply_limit(fact, session.renderer, settings, session.context)
        if reason:
            reasons[fact.id] = reason
        else:
            naive, expert = session.renderer.naive(fact.question), session.renderer.expert(fact)
            asked.append(RolloutPrompt(fact.id, tuple(naive), tuple(expert), limit))
    if not asked:
        first, reason = next(iter(reasons.items()))
        raise UserError(f"no usable fact among {len(reasons)}; the first one, {first}: {reason}")
    if not ranks.follows():
        session.run.log("asked", facts=len(asked), unusable=reasons)
    own = {name: getattr(settings, name) for name in ("samples", "temperature", "seed", "token_budget")}
    loss = Divergence.of(settings) if settings.spec.distilled else settings.nll_token
    return OnPolicy(asked, teacher, **own, stops=session.renderer.stops.ids, loss=loss)


def _hash(decides: object) -> str:
    return hashlib.blake2b(repr(decides).encode(), digest_size=16).hexdigest()
