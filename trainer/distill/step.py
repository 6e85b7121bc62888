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
from torch import Tensor

from cluster.process.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.core.device import HostCopy
from trainer.core.waiting import device_wait
from trainer.data.windows import Windows
from trainer.distill.grad_cache import Leaves, coupled_gradients
from trainer.distill.health import HEALTH_ROWS, measure_rows, read_health
from trainer.distill.method import GlobalContext, Method, States, StepInputs
from trainer.distill.result import Reduced, StepResult
from trainer.engine.ema import ShardedEMA
from trainer.engine.engine import Engine
from trainer.engine.flat_adapters import Decision
from trainer.losses.term import AT_THE_END, Moment, Place, RankBatch
from trainer.models.network import Crops, Network, Outputs
from trainer.views.view_batch import ViewBatch, lengths


@dataclass(frozen=True)
class StudentFeatures:
    """What the coupled losses read of the student before the gather.

    ``outputs``: with one micro-batch, those of the pass that gave the features: it is also the one that
    learns. None with several, and without a coupled loss.
    """

    leaves: list[Leaves]
    outputs: list[Outputs] | None = None


@dataclass(frozen=True)
class Learned:
    """What the micro-batches gave on this rank: shares of the losses, and tensors for ``read_health``."""

    sums: dict[str, Tensor]
    measured: list[dict[str, Tensor]]


def train_step(
    engine: Engine[Network],
    teacher: ShardedEMA[Network],
    micro_batches: Sequence[Windows] | StepInputs,
    *,
    method: Method,
    states: States,
    moment: Moment = AT_THE_END,
    measure: bool = False,
    stop_code: Callable[[], int] = int,
) -> StepResult:
    """Forward and backward of every micro-batch; the gradient is left in the engine, not applied.

    ``micro_batches``: windows, or what ``StepInputs.of`` made of them before, such as in the reader's thread.
    ``moment``: when in the run it is. ``measure`` also reads the health of the batch's first HEALTH_ROWS
    rows, for which there is one more gather. ``stop_code`` gives the exit code to stop with, 0 for none; it
    is asked once the gradient is there.
    """
    inputs = micro_batches if isinstance(micro_batches, StepInputs) else StepInputs.of(micro_batches, method)
    with engine.fast():
        taught = teacher_forward(teacher.module, inputs, method) if method.reads_teacher else []
        features = student_features(engine, inputs, method)
        batches = rank_batches(inputs, taught, states, method, moment)
        context = gather_global(batches, taught, features.leaves, method)
        learned = learn(engine, inputs, features.outputs, context, method=method, measure=measure)
    read, decision = reduce_step(engine, learned.sums, method, stop_code())
    health = read_health(learned.measured, method) if measure else {}
    return StepResult(read, states_after(states, context, method), health, decision)


@torch.no_grad()
def teacher_forward(teacher: Network, inputs: StepInputs, method: Method) -> list[list[Outputs]]:
    """The teacher's outputs for its unmasked view of every pair, by micro-batch and direction."""
    return [
        [
            teacher(
                pair.teacher.codes_BL,
                length_B=lengths(pair.teacher),
                nucleotides=False,
                requests=inputs.teacher_requests(m, d, method.terms, teacher.heads),
            )
            for d, pair in enumerate(view.pairs)
        ]
        for m, view in enumerate(inputs.views)
    ]


def student_features(engine: Engine[Network], inputs: StepInputs, method: Method) -> StudentFeatures:
    """The features of the coupled losses, of all micro-batches."""
    coupled, heads = [term for term in method.terms if term.coupled], engine.network.heads
    if not coupled:
        return StudentFeatures([])
    if len(inputs.views) == 1:
        live = student_forward(engine, inputs, 0, method)
        return StudentFeatures([Leaves.of(term, [live]) for term in coupled], live)
    with torch.no_grad():
        outputs = [
            read_student(engine.network, view, inputs.student_requests(m, coupled, heads), nucleotides=False)
            for m, view in enumerate(inputs.views)
        ]
    return StudentFeatures([Leaves.of(term, outputs) for term in coupled])


def student_forward(
    engine: Engine[Network], inputs: StepInputs, micro_batch: int, method: Method
) -> list[Outputs]:
    """The student's outputs for its masked view of each pair, and for the crops: all that the losses read."""
    view = inputs.views[micro_batch]
    crops = None
    if view.crops_XL is not None:
        readers = tuple(term.name for term in method.terms if term.reads_crops)
        crops = Crops(view.crops_XL, view.crop_length_X, readers)
    asked = inputs.student_requests(micro_batch, method.terms, engine.network.heads)
    return read_student(engine.forward, view, asked, crops=crops)


def read_student(
    forward: Callable[..., Outputs],
    view: ViewBatch,
    requests: Mapping[str, Any],
    *,
    nucleotides: bool = True,
    crops: Crops | None = None,
) -> list[Outputs]:
    """Outputs by direction, from one forward: DeepSpeed allows one a backward."""
    pairs = view.pairs
    noises = [pair.noise_BLC for pair in pairs if pair.noise_BLC is not None]
    outputs = forward(
        torch.cat([pair.masked.codes_BL for pair in pairs]),
        length_B=lengths(*(pair.student for pair in pairs)),
        noise_BLC=torch.cat(noises) if noises else None,
        nucleotides=nucleotides,
        requests=requests,
        crops=crops,
    )
    return outputs.chunk(len(pairs))


def rank_batches(
    inputs: StepInputs,
    taught: Sequence[Sequence[Outputs]],
    states: States,
    method: Method,
    moment: Moment,
) -> dict[str, RankBatch]:
    """What each loss has of this rank, by its name."""
    return {
        term.name: RankBatch(
            inputs.views,
            inputs.extras[term.name],
            taught,
            states.get(term.name),
            method.global_batch,
            method.group,
            moment,
        )
        for term in method.terms
    }


def gather_global(
    batches: dict[str, RankBatch],
    taught: Sequence[Sequence[Outputs]],
    leaves: Sequence[Leaves],
    method: Method,
) -> GlobalContext:
    """The step's one packed all-gather, and what each loss makes of it."""
    payloads = {term.name: term.payload(batches[term.name]) for term in method.terms}
    for of in leaves:
        payloads[of.term.name] |= of.term.coupled_payload(of.by_direction)
    gathered = _gather_by_name(payloads, method.group)
    contexts = {term.name: term.receive(batches[term.name], gathered[term.name]) for term in method.terms}
    cached = coupled_gradients(leaves, batches, gathered, contexts) if leaves else None
    return GlobalContext(taught, batches, contexts, cached)


def learn(
    engine: Engine[Network],
    inputs: StepInputs,
    live: list[Outputs] | None,
    context: GlobalContext,
    *,
    method: Method,
    measure: bool,
) -> Learned:
    """Forward and backward of every micro-batch; ``live``: the outputs of the first where they are there."""
    zero = torch.zeros((), dtype=torch.float64, device=inputs.device)
    sums = {term.name: zero.clone() for term in method.terms}
    if context.cached:
        for name, share in context.cached.shares.items():
            sums[name] += share
    measured, first_row = list[dict[str, Tensor]](), 0
    for m, view in enumerate(inputs.views):
        outputs = live or student_forward(engine, inputs, m, method)
        rows = slice(first_row, first_row + view.rows)
        loss = torch.zeros((), device=inputs.device)
        for direction, of_direction in enumerate(outputs):
            for term in method.terms:
                if not term.coupled:
                    share = term.value(of_direction, Place(m, direction, rows), context.contexts[term.name])
                    sums[term.name] += share.detach()
                    loss = loss + term.weight * share
        if context.cached:
            loss = loss + context.cached.attach(outputs, rows, micro_batches=len(inputs.views))
        count = max(1, HEALTH_ROWS // method.group.size) - first_row
        if measure and count > 0:
            measured.append(measure_rows(outputs[0], context, Place(m, 0, rows), method, count=count))
        engine.backward(loss)
        if m + 1 < len(inputs.views):
            engine.end_micro_batch()
        first_row = rows.stop
    return Learned(sums, measured)


def reduce_step(
    engine: Engine[Network], sums: Mapping[str, Tensor], method: Method, stop_code: int
) -> tuple[Callable[[], Reduced], Decision | None]:
    """(what waits for global losses, whether all is finite, and the code to stop with; whether the step is
    applied): decided together, in one all-reduce, which nothing here waits for."""
    mine = torch.stack(list(sums.values()))
    squares_n = engine.gradient_squares()
    stops = mine.new_zeros(2)
    for place, code in enumerate((EXIT_PREEMPTED, EXIT_INTERRUPTED)):
        if stop_code == code:
            stops[place].fill_(1)
    broken = ~(mine.isfinite().all() & engine.is_finite(squares_n))
    packed = torch.cat([mine, broken.double()[None], stops, squares_n])
    with device_wait.running():  # on a CPU, where a collective ends when the last rank has come
        total = collectives.sum_over_ranks(engine.group, packed)
    broken_ranks = total[len(mine)]
    decision = engine.decide(total[len(mine) + 3 :], broken_ranks > 0)
    applies, norm = (broken_ranks == 0, broken_ranks.new_full((), torch.nan))
    if decision is not None:
        applies, norm = decision.applies, decision.norm.double()
    copied = HostCopy(torch.cat([total[: len(mine) + 3], applies.double()[None], norm[None]]))

    def read() -> Reduced:
        *means, _, preempted, interrupted, finite, norm = copied.values()
        losses = dict(zip(sums, means, strict=True))
        losses["total"] = sum(term.weight * losses[term.name] for term in method.terms)
        stop = EXIT_INTERRUPTED if interrupted else EXIT_PREEMPTED if preempted else 0
        return Reduced(losses, bool(finite), stop, norm)

    return read, decision


def states_after(states: States, context: GlobalContext, method: Method) -> dict[str, Tensor]:
    """The states that losses have after this step, if it is applied."""
    found = {}
    for term in method.terms:
        if term.name in states:
            after = term.next_state(states[term.name], context.contexts[term.name])
            if after is not None:
                found[term.name] = after
    return found


def _gather_by_name(
    payloads: Mapping[str, Mapping[str, Tensor]], group: Group
) -> dict[str, dict[str, Tensor]]:
    """The tensors of all ranks, [W, ...] each, in one all-gather."""
    packed = {f"{name} {key}": part for name, parts in payloads.items() for key, part in parts.items()}
    gathered = collectives.gather_packed(group, packed)
    return {name: {key: gathered[f"{name} {key}"] for key in parts} for name, parts in payloads.items()}
