"""One step of self-distillation: a global batch in, gradients and global losses out. It knows no loss.

The teacher reads first, over all micro-batches and without gradient. Then everything that needs the global
batch (keys, sums for the centre, bottlenecks, ids of places, counts) travels in one packed all-gather. Then
the student goes through its micro-batches, each against all keys; keys need no gradient, so accumulation is
exact. See grad_cache.py for the losses whose keys do.

Shapes: B rows of a micro-batch; lists run over micro-batches, then over directions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.process.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.data.windows import Windows
from trainer.distill import representation_metrics
from trainer.distill.grad_cache import CachedGradients, Leaves, coupled_gradients
from trainer.engine.ema import ShardedEMA
from trainer.engine.engine import Engine
from trainer.losses.term import LossTerm, Place, RankBatch
from trainer.models.network import Crops, Network, Outputs
from trainer.views.config import Views
from trainer.views.view_batch import ViewBatch, lengths, make_view_batch, ragged

HEALTH_ROWS = 512  # of the global batch that its health is read from: spread and rank cost their square
Term = LossTerm[Any, Any]
States = Mapping[str, Tensor]
"""What losses carry from step to step, by their names: the moving centres."""


@dataclass(frozen=True)
class Method:
    """What is the same at every step: views, losses in use, samples of a global batch, the ranks."""

    views: Views
    terms: Sequence[Term]
    global_batch: int
    group: Group

    @property
    def reads_teacher(self) -> bool:
        return any(term.reads_teacher for term in self.terms)


@dataclass(frozen=True)
class StepResult:
    """What a step found, the same on all ranks.

    ``losses``: name -> mean over the global batch, and "total", their weighted sum. ``states``: of the losses
    that carry one, after this step. ``finite``: no loss and no gradient of any rank is infinite or NaN, so
    that the step may be applied. ``stop``: the exit code that some rank was told to stop with, or 0.
    """

    losses: dict[str, float]
    states: dict[str, Tensor]
    finite: bool
    health: dict[str, float]
    stop: int = 0


@dataclass(frozen=True)
class GlobalContext:
    """What this rank knows of the global batch after the one gather, by the loss's name."""

    batches: dict[str, RankBatch]
    contexts: dict[str, Any]  # what the loss's ``receive`` made of it
    cached: CachedGradients | None  # of the coupled losses, where there are any


def train_step(
    engine: Engine,
    teacher: ShardedEMA[Network],
    micro_batches: Sequence[Windows],
    *,
    method: Method,
    states: States,
    measure: bool = False,
    stop_code: Callable[[], int] = int,
) -> StepResult:
    """Forward and backward of every micro-batch; the gradient is left in the engine, not applied.

    ``measure`` also reads the health of the batch's first HEALTH_ROWS rows, for which there is one more
    gather. ``stop_code`` gives the exit code to stop with, 0 for none; it is asked once the gradient is
    there.
    """
    terms, heads = method.terms, engine.network.heads
    views = [make_view_batch(windows, method.views) for windows in micro_batches]
    extras = {
        term.name: [term.prepare(*pair) for pair in zip(micro_batches, views, strict=True)] for term in terms
    }
    taught = teacher_forward(teacher.module, views, extras, terms) if method.reads_teacher else []
    leaves, live = student_features(engine, views, extras, terms)
    batches = {
        term.name: RankBatch(
            views, extras[term.name], taught, states.get(term.name), method.global_batch, method.group
        )
        for term in terms
    }
    context = gather_global(terms, batches, leaves, method.group)

    device = views[0].pairs[0].student.codes_BL.device
    sums = {term.name: torch.zeros((), dtype=torch.float64, device=device) for term in terms}
    if context.cached:
        for name, share in context.cached.shares.items():
            sums[name] += share
    measured: list[dict[str, Tensor]] = []
    first_row = 0
    for m, view in enumerate(views):
        outputs = live or student_forward(engine.forward, view, requests(terms, extras, m, heads), terms)
        rows = slice(first_row, first_row + view.rows)
        loss = torch.zeros((), device=device)
        for direction, out in enumerate(outputs):
            for term in terms:
                if not term.coupled:
                    share = term.value(out, Place(m, direction, rows), context.contexts[term.name])
                    sums[term.name] += share.detach()
                    loss = loss + term.weight * share
        if context.cached:
            loss = loss + context.cached.attach(outputs, rows, micro_batches=len(views))
        wanted = max(1, HEALTH_ROWS // method.group.size) - rows.start
        if measure and wanted > 0:
            measured.append(measure_rows(terms, outputs[0], context, Place(m, 0, rows), count=wanted))
        engine.backward(loss)
        if m + 1 < len(views):
            engine.end_micro_batch()
        first_row = rows.stop
    losses, finite, stop = reduce_step(engine, terms, sums, stop_code())
    next_states = {
        term.name: state
        for term in terms
        if term.name in states
        and (state := term.next_state(states[term.name], context.contexts[term.name])) is not None
    }
    health = read_health(terms, measured, method.group) if measure else {}
    return StepResult(losses, next_states, finite, health, stop)


@torch.no_grad()
def teacher_forward(
    teacher: Network,
    views: Sequence[ViewBatch],
    extras: Mapping[str, Sequence[Any]],
    terms: Sequence[Term],
) -> list[list[Outputs]]:
    """The teacher's outputs for its unmasked view of every pair."""
    asked = [term for term in terms if term.name in teacher.heads]
    return [
        [
            teacher(
                pair.teacher.codes_BL,
                length_B=lengths(pair.teacher),
                nucleotides=False,
                requests={term.name: term.teacher_request(extras[term.name][m], d) for term in asked},
            )
            for d, pair in enumerate(view.pairs)
        ]
        for m, view in enumerate(views)
    ]


def student_features(
    engine: Engine, views: Sequence[ViewBatch], extras: Mapping[str, Sequence[Any]], terms: Sequence[Term]
) -> tuple[list[Leaves], list[Outputs] | None]:
    """The features of the coupled losses, before the gather; and, with one micro-batch, the outputs of the
    pass that gave them, which is also the one that learns."""
    coupled = [term for term in terms if term.coupled]
    if not coupled:
        return [], None
    heads = engine.network.heads
    live = None
    if len(views) == 1:
        live = student_forward(engine.forward, views[0], requests(terms, extras, 0, heads), terms)
        outputs = [live]
    else:
        with torch.no_grad():
            outputs = [
                student_forward(engine.network, view, requests(coupled, extras, m, heads))
                for m, view in enumerate(views)
            ]
    return [Leaves.of(term, outputs) for term in coupled], live


def requests(
    terms: Sequence[Term], extras: Mapping[str, Sequence[Any]], micro_batch: int, heads: nn.ModuleDict
) -> dict[str, Any]:
    """What each loss that has a head asks it for of the student."""
    asked = [term for term in terms if term.name in heads]
    return {term.name: term.student_request(extras[term.name][micro_batch]) for term in asked}


def student_forward(
    forward: Callable[..., Outputs],
    view: ViewBatch,
    asked: Mapping[str, Any],
    terms: Sequence[Term] = (),
) -> list[Outputs]:
    """The student's outputs for its masked view of each pair, from one forward: DeepSpeed allows one a
    backward.

    Without ``terms`` only the heads' outputs, for features.
    """
    pairs = view.pairs
    noises = [pair.noise_BLC for pair in pairs if pair.noise_BLC is not None]
    codes_BL = torch.cat([pair.masked.codes_BL for pair in pairs])
    crops = None
    if terms and view.crops_XL is not None:
        readers = tuple(term.name for term in terms if term.reads_crops)
        crops = Crops(view.crops_XL, view.crop_length_X, readers)
    outputs = forward(
        codes_BL,
        length_B=ragged(torch.cat([pair.student.length_B for pair in pairs]), codes_BL),
        noise_BLC=torch.cat(noises) if noises else None,
        nucleotides=bool(terms),
        requests=asked,
        crops=crops,
    )
    return outputs.chunk(len(pairs))


def gather_global(
    terms: Sequence[Term], batches: dict[str, RankBatch], leaves: Sequence[Leaves], group: Group
) -> GlobalContext:
    """The step's one packed all-gather, and what each loss makes of it."""
    payload: dict[tuple[str, str], Tensor] = {}
    for term in terms:
        payload |= {(term.name, key): part for key, part in term.payload(batches[term.name]).items()}
    for of in leaves:
        payload |= {
            (of.term.name, key): part for key, part in of.term.coupled_payload(of.by_direction).items()
        }
    packed = collectives.gather_packed(
        group, {f"{name} {key}": part for (name, key), part in payload.items()}
    )
    gathered: dict[str, dict[str, Tensor]] = {term.name: {} for term in terms}
    for name, key in payload:
        gathered[name][key] = packed[f"{name} {key}"]
    contexts = {term.name: term.receive(batches[term.name], gathered[term.name]) for term in terms}
    cached = coupled_gradients(leaves, batches, gathered, contexts) if leaves else None
    return GlobalContext(batches, contexts, cached)


def reduce_step(
    engine: Engine, terms: Sequence[Term], sums: Mapping[str, Tensor], stop_code: int
) -> tuple[dict[str, float], bool, int]:
    """Global losses, whether all is finite, and the code to stop with: decided together, in one
    all-reduce."""
    mine = torch.stack(list(sums.values()))
    broken = ~(mine.isfinite().all() & engine.gradient_is_finite())
    stops = torch.tensor([stop_code == EXIT_PREEMPTED, stop_code == EXIT_INTERRUPTED], device=mine.device)
    packed = torch.cat([mine, broken.double()[None], stops.double()])
    *means, broken_ranks, preempted, interrupted = collectives.sum_over_ranks(engine.group, packed).tolist()
    stop = EXIT_INTERRUPTED if interrupted else EXIT_PREEMPTED if preempted else 0
    losses = dict(zip(sums, means, strict=True))
    losses["total"] = sum(term.weight * losses[term.name] for term in terms)
    return losses, not broken_ranks, stop


@torch.no_grad()
def measure_rows(
    terms: Sequence[Term], outputs: Outputs, context: GlobalContext, place: Place, *, count: int
) -> dict[str, Tensor]:
    """Of the first ``count`` rows of a micro-batch, first direction: what ``read_health`` gathers."""
    student_BE = F.normalize(outputs.embedding[:count], dim=-1)
    taught = context.batches[terms[0].name].taught
    found = {"unit": student_BE}
    if taught:
        found = {
            "unit": F.normalize(taught[place.micro_batch][0].embedding[:count], dim=-1),
            "other": student_BE,
        }
    for term in terms:
        batch, own = context.batches[term.name], context.contexts[term.name]
        parts = term.measure(outputs, batch, place, own, count=count)
        found |= {f"{term.name} {key}": part for key, part in parts.items()}
    return found


def read_health(
    terms: Sequence[Term], measured: Sequence[Mapping[str, Tensor]], group: Group
) -> dict[str, float]:
    """``health/…`` of the global batch's first rows; a collective."""
    mine = {key: torch.cat([part[key] for part in measured]) for key in measured[0]}
    everywhere = {key: part.flatten(0, 1) for key, part in collectives.gather_packed(group, mine).items()}
    found = representation_metrics.readings(everywhere["unit"], other_GE=everywhere.get("other"))
    for term in terms:
        own = {
            key.removeprefix(f"{term.name} "): part
            for key, part in everywhere.items()
            if key.startswith(f"{term.name} ")
        }
        if own:
            found |= term.readings(own)
    return found


def held_out_readings(terms: Sequence[Term], states: States) -> Callable[[Outputs], dict[str, Tensor]]:
    """What the losses read of the teacher's outputs of held-out windows, by row [B]."""

    def by_row(outputs: Outputs) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for term in terms:
            found |= term.held_out(outputs, states.get(term.name))
        return found

    return by_row
