"""The teacher's probabilities balanced over the global batch: log-space Sinkhorn-Knopp that communicates
nothing.

Each rank has the bottleneck vectors of all ranks and recomputes the cosines block by block, so that no [N, K]
exists: memory is O(N + K + block · K). A block is the same rows whoever asks, and all ranks get the same bits
if they have the same processor and number of threads; otherwise they agree to the rounding of a cosine over
the temperature.

Shapes: N rows of the global batch, M of a block, n wanted rows, C bottleneck, K prototypes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.losses.reduction import full_precision


@dataclass(frozen=True)
class Assignment:
    """The global batch of teacher vectors that K prototypes are to share evenly."""

    bottleneck_NC: Tensor  # unit vectors of all ranks, in rank order
    prototypes_KC: Tensor  # unit vectors
    weight_N: (
        Tensor | None
    )  # 1 for a row that takes its share of the prototypes, 0 for one that does not; None: 1
    temperature: float  # of the teacher
    iterations: int = 3
    block: int = 1024  # rows of a block


@torch.no_grad()
def sinkhorn(assignment: Assignment, rows: slice = slice(None)) -> Tensor:
    """fp32 [n, K]: the probabilities of the wanted rows; each row sums to 1, and over all rows prototypes are
    balanced.

    A row of weight 0 gets its probabilities too, but moves nobody else's. Where no row counts, nothing is
    balanced. Cuturi 2013; Caron et al. 2020 (SwAV); Oquab et al. 2023 (DINOv2); in log space with one
    potential for each prototype, since exp(1 / 0.01) is past fp32 and exp(-2 / 0.01) is 0 there. Scores are
    as exact as an fp32 cosine over τ: probabilities to about 1e-7 / τ of themselves.
    Naive: Q[n, k] = exp(x[n]·p[k] / τ);  ``iterations`` times: Q[:, k] /= sum(w[n] · Q[n, k] for every n) and
    then
    Q[n, :] /= sum(Q[n, k] for every k).
    """
    count, block = len(assignment.bottleneck_NC), assignment.block
    assert assignment.iterations >= 1 and block >= 1, (
        f"{assignment.iterations} iterations over blocks of {block} rows"
    )
    assert assignment.temperature > 0, f"a teacher temperature of {assignment.temperature}"
    start, stop, step = rows.indices(count)
    assert step == 1, f"the wanted rows {rows} are not one stretch"
    with full_precision(assignment.bottleneck_NC):
        potential_K = _potentials(assignment)
        probabilities = [potential_K.new_empty(0, len(potential_K))]
        # Whole blocks although only some rows are wanted: a product of another shape may round otherwise.
        for begin in range(start - start % block, stop, block):
            balanced_MK = torch.softmax(_scores(assignment, begin) + potential_K, dim=-1)
            probabilities.append(balanced_MK[max(start - begin, 0) : max(stop - begin, 0)])
    return torch.cat(probabilities)


def _scores(assignment: Assignment, begin: int) -> Tensor:
    """[M, K]: cosine / temperature of the block's rows."""
    bottleneck_MC = assignment.bottleneck_NC[begin : begin + assignment.block].float()
    return (bottleneck_MC @ assignment.prototypes_KC.float().T).div_(assignment.temperature)


def _potentials(assignment: Assignment) -> Tensor:
    """[K]: what to add to a prototype's scores so that the prototypes come out balanced; 0 in the mean.

    The rows' potentials follow from it (minus the logsumexp of the row), so that a pass over the blocks ends
    one iteration and begins the next, and only the column sums are kept from block to block.
    """
    count, size = len(assignment.bottleneck_NC), len(assignment.prototypes_KC)
    device = assignment.bottleneck_NC.device
    potential_K = torch.zeros(size, device=device)
    log_weight_N = None if assignment.weight_N is None else assignment.weight_N.float().log()
    for iteration in range(assignment.iterations):
        # The logsumexp of each column, online: exp(highest) · total. Weights of 0 make scores of -inf; hence
        # a finite start, which leaves total at 0 while no row has counted.
        highest_K = torch.full((size,), torch.finfo(torch.float32).min / 2, device=device)
        total_K = torch.zeros(size, dtype=torch.float64, device=device)
        for begin in range(0, count, assignment.block):
            scores_MK = _scores(assignment, begin)
            if iteration:
                scores_MK -= torch.logsumexp(scores_MK + potential_K, dim=-1, keepdim=True)
            if log_weight_N is not None:
                scores_MK += log_weight_N[begin : begin + assignment.block, None]
            higher_K = torch.maximum(highest_K, scores_MK.amax(0))
            total_K = (
                total_K * (highest_K - higher_K).double().exp()
                + scores_MK.sub_(higher_K).exp_().sum(0).double()
            )
            highest_K = higher_K
        # Rows are normalised afterwards, so that a constant in the potentials means nothing, log(N / K)
        # included: the mean is taken off, which leaves small numbers and with them small roundings.
        log_sum_K = highest_K.double() + total_K.log()
        potential_K = torch.where(
            total_K == 0, 0.0, log_sum_K.mean() - log_sum_K
        ).float()  # 0 where no row counts
    return potential_K
