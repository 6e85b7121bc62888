"""Views and masks against EvoAug (Lee et al., Genome Biology 2023): the same augmentations, its own code,
same windows.

EvoAug works on one-hot float tensors [B, 4, L], which it is given ready made; it has no mask, so that is
plain torch.
Shapes: B windows, S = L + 2·flank source positions, L view positions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.bench.harness import Row, rate
from trainer.core import random
from trainer.data.windows import Windows
from trainer.views.edits import flank_for
from trainer.views.masking import mask
from trainer.views.view import make_view

ROWS, LENGTH, BATCHES = 64, 1000, 16
INDELS = {"deletion": 20, "insertion": 20, "shift": 20}
RATE, MASK_SHARE, RANDOM_SHARE = 0.3, 0.8, 0.1
BATCH_MBP = ROWS * LENGTH / 1e6  # of source sequence: a window counts once, however many views it has


def two_views() -> Row:
    """Student: strand and mask. Teacher: deletion, insertion, shift and mask."""
    return _against_evoaug("two views, both masked, L = 1000", substitution=0.0, both_strands=False)


def two_heavy_views() -> Row:
    """Both views: deletion, insertion, shift, substitution of 5 %, strand and mask."""
    return _against_evoaug("two views with all operations, L = 1000", substitution=0.05, both_strands=True)


def make_windows() -> Windows:
    """One batch of random windows, with all the flank that the operations can reach."""
    flank = flank_for(INDELS)
    generator = torch.Generator().manual_seed(0)
    codes_BS = torch.randint(0, 4, (ROWS, LENGTH + 2 * flank), generator=generator, dtype=torch.uint8)
    low_B, high_B = torch.zeros(ROWS, dtype=torch.int64), torch.full((ROWS,), LENGTH + 2 * flank)
    place_B3 = torch.tensor([0, 0, LENGTH]).repeat(ROWS, 1)
    return Windows(codes_BS, low_B, high_B, random.fold(0, torch.arange(ROWS)), place_B3, flank)


def our_views(*, substitution: float, both_strands: bool) -> Callable[[Windows], None]:
    """A function that makes and masks both views of a batch."""
    first = INDELS if both_strands else {}

    def make(windows: Windows) -> None:
        for name, operations, strand in (("student", first, 0.5), ("teacher", INDELS, 0.5 * both_strands)):
            view = make_view(
                windows,
                name=name,
                operations=operations,
                substitution=substitution,
                reverse_complement=strand,
            )
            mask(view, windows, name=name, rate=RATE, mask_share=MASK_SHARE, random_share=RANDOM_SHARE)

    return make


def evoaug_views(*, substitution: float, both_strands: bool) -> Callable[[Tensor], None]:
    """The same through EvoAug, of one-hot float32 [B, 4, L]. RuntimeError if evoaug is not installed."""
    try:
        from evoaug import augment
    except ImportError as missing:
        raise RuntimeError(
            "evoaug is not installed; the bench compares with it: pip install --no-deps -r "
            "constraints-bench.txt"
        ) from missing
    indels = [
        augment.RandomDeletion(0, 20),
        augment.RandomInsertion(0, 20),
        augment.RandomTranslocation(0, 20),
    ]
    if substitution:
        indels.append(augment.RandomMutation(substitution))
    strand = [augment.RandomRC(0.5)]
    student = indels + strand if both_strands else strand
    teacher = indels + strand if both_strands else indels

    def make(onehot_B4L: Tensor) -> None:
        for operations in (student, teacher):
            view_B4L = onehot_B4L
            for operation in operations:
                view_B4L = operation(view_B4L)
            _mask_onehot(view_B4L[..., :LENGTH])  # its insertion makes all rows 20 longer

    return make


def _mask_onehot(onehot_B4L: Tensor) -> tuple[Tensor, Tensor]:
    """(masked one-hot, target bool [B, L]) as one writes it in plain torch; hidden letters are all zeros."""
    rows, bases, length = onehot_B4L.shape
    target_BL, kind_BL = torch.rand(rows, length) < RATE, torch.rand(rows, length)
    hidden_BL = target_BL & (kind_BL < MASK_SHARE)
    random_BL = target_BL & ~hidden_BL & (kind_BL < MASK_SHARE + RANDOM_SHARE)
    letters_B4L = torch.eye(bases)[torch.randint(bases, (rows, length))].transpose(1, 2)
    masked_B4L = torch.where(random_BL[:, None], letters_B4L, onehot_B4L)
    return masked_B4L.masked_fill(hidden_BL[:, None], 0.0), target_BL


def _against_evoaug(name: str, *, substitution: float, both_strands: bool) -> Row:
    windows = make_windows()
    letters_BL = windows.codes_BS[:, windows.flank : -windows.flank].long()
    onehot_B4L = torch.nn.functional.one_hot(letters_BL, 4).transpose(1, 2).float().contiguous()
    ours = our_views(substitution=substitution, both_strands=both_strands)
    theirs = evoaug_views(substitution=substitution, both_strands=both_strands)

    def ours_repeated() -> None:
        for _ in range(BATCHES):
            ours(windows)

    def theirs_repeated() -> None:
        for _ in range(BATCHES):
            theirs(onehot_B4L)

    fast, slow = rate(BATCHES * BATCH_MBP, ours_repeated, theirs_repeated)
    return Row(name, fast, slow, fast / slow, "Mbp/s", "≥ 3", "evoaug 1.0.6, one-hot given")
