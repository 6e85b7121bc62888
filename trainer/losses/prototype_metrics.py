"""Is a teacher of prototypes alive? Pure functions of its distributions, and of the student's.

Shapes: B rows, R rows of prototype distributions, P positions, K prototypes.
"""

import torch
from torch import Tensor

# samples, and dimensions that they could differ in at most: with less, no spread or low rank is no finding
FEWEST = 4


def entropy(probability: Tensor) -> Tensor:
    """Entropy in nats [...] of distributions [..., K]; 0 says one prototype each, log K says no
    preference."""
    return torch.special.entr(probability).sum(-1)


def divergence(probability: Tensor, log_probability: Tensor) -> Tensor:
    """KL(p || q) in nats [...] of p [..., K] and log q [..., K]; at least 0, infinite where q excludes what p
    holds."""
    log_ratio = torch.where(probability > 0, probability.log() - log_probability, 0.0)
    return (probability * log_ratio).sum(-1).clamp(min=0)


def prototype_usage(assignment_PK: Tensor) -> float:
    """exp of the entropy of the mean assignment over K, mean over P: 1/K is one prototype for all, 1 is all
    alike."""
    return min(1.0, float(entropy(assignment_PK.double()).exp().mean()) / assignment_PK.shape[-1])


def prototype_sums(teacher_BPK: Tensor, student_BPK: Tensor) -> Tensor:
    """fp64 [P, 2K + 3], to be added up over micro-batches, directions and ranks, for ``readings``.

    For each summary position by itself, since a teacher that knows the position and not the sample has
    collapsed: the sum of its probabilities [K], how often each prototype is its first choice [K], and the sum
    of its entropy, of KL(teacher || student), and the number of rows.

    Args:
        teacher_BPK: the teacher's probabilities, sharpened and centred as in the loss. Without positions: [R,
        1, K].
        student_BPK: the student's log-probabilities of the same rows.
    """
    assert teacher_BPK.shape == student_BPK.shape, f"rows of {teacher_BPK.shape} and {student_BPK.shape}"
    teacher_BPK, student_BPK = teacher_BPK.float(), student_BPK.float()
    _, positions, prototypes = teacher_BPK.shape
    place_BP = teacher_BPK.argmax(-1) + prototypes * torch.arange(positions, device=teacher_BPK.device)
    first_PK = torch.bincount(place_BP.flatten(), minlength=positions * prototypes).view(
        positions, prototypes
    )
    scalars_BP3 = [
        entropy(teacher_BPK),
        divergence(teacher_BPK, student_BPK),
        torch.ones_like(teacher_BPK[..., 0]),
    ]
    sums = [teacher_BPK.sum(0, dtype=torch.float64), first_PK, torch.stack(scalars_BP3, -1).double().sum(0)]
    return torch.cat(sums, dim=-1)


def readings(sums_PS: Tensor) -> dict[str, float]:
    """entropy, kl, and of FEWEST rows or more usage, chosen, information and learned, of ``prototype_sums``
    added up over everything that is to count; nothing where there is no row.

    information: nats that a row's distribution tells of which row it is, entropy(mean) - mean(entropy), mean
    over positions. It is what a student can learn: one that knows the mean alone has just this KL. learned:
    information - kl, so 0 of that one, and less of one that does not know the mean.
    """
    prototypes = (sums_PS.shape[1] - 3) // 2
    assignment_PK, first_PK, scalars_P3 = sums_PS.double().split([prototypes, prototypes, 3], dim=1)
    entropies, divergences, rows = scalars_P3.sum(0).tolist()
    if not rows:
        return {}
    found = {"entropy": entropies / rows, "kl": divergences / rows}
    if rows >= FEWEST * len(sums_PS):  # every position has one row of each sample
        mean_PK = assignment_PK / scalars_P3[:, 2:]
        found |= {
            "usage": prototype_usage(mean_PK),
            "chosen": float((first_PK > 0).double().mean()),
            "information": float((entropy(mean_PK).mean() - found["entropy"]).clamp(min=0)),
        }
        found["learned"] = found["information"] - found["kl"]
    return found
