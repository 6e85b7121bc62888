"""Views: augmented readings of a source window, each with a source map that labels and masks follow.

A source window is a stretch of the genome with a flank on both sides, so that deletions and shifts bring in
real neighbours. Each operation (edits.py) is an edit of a few numbers a row. The edits are composed into one
piecewise linear path through the window, which is written out position by position only once, and the letters
are gathered once.

Full-size tensors are integers, flags are 0 or 1, and a choice between two is arithmetic: the same bits on CPU
and GPU, and much faster on CPU than bool, where ``torch.where`` and comparisons into bool are not vectorised.

Shapes: B samples, S = L + 2·flank source positions, L view positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep import alphabet
from trainer.core import device, random
from trainer.data.windows import Windows
from trainer.views.edits import VIEWS, Path, compose

INSERTED, PADDED = -1, -2
_NEW = alphabet.SIZE  # no code: stands where a letter is to be inserted


@dataclass(frozen=True)
class View:
    """Letters of one view and where each comes from.

    ``source_BL`` is the position in the source window, or INSERTED, or PADDED (only at the end, after
    ``length_B``). On a reversed row, a letter is the complement of its source. ``altered_BL``: the letter is
    not its source's. ``predictable_BL``: it is, and is A, C, G or T, so that it may be asked for.
    ``is_full``: no row has padding, which is known without a look at the tensors.
    """

    codes_BL: Tensor  # uint8
    source_BL: Tensor  # int32
    altered_BL: Tensor  # bool
    reversed_B: Tensor  # bool
    length_B: Tensor  # int64
    predictable_BL: Tensor  # bool
    is_full: bool


def make_view(
    windows: Windows,
    *,
    name: str,
    operations: Mapping[str, int],
    substitution: float = 0.0,
    reverse_complement: float = 0.0,
) -> View:
    """The view ``name`` of each window: the operations in their order, then strand, then substitutions.

    The same windows, name and settings give the same view, in any batch and on any device.

    Args:
        name: views of different names draw independently of each other.
        operations: names in VIEWS with their limits in bp, of which the windows' flank should be the sum.
        substitution: probability that a letter becomes another one (never N), to 2⁻¹⁵.
        reverse_complement: probability that the row is read from the other strand.
    """
    length = windows.length
    stream_B = random.stream_keys(windows.key_B, f"{name} view")
    rows, letters, shorts = 1 + len(operations), -(-length // random.LETTERS), -(-length // random.SHORTS)
    words_Bn = random.read(stream_B, 0, rows)
    reversed_B = random.below(words_Bn[:, 0], 0, reverse_complement)
    edits = [
        VIEWS[operation](words_Bn[:, i : i + 1], limit, length)
        for i, (operation, limit) in enumerate(operations.items(), 1)
    ]
    path = compose(edits, windows)
    source_BL, codes_BL = _read(windows, path, reversed_B if reverse_complement else None)

    base_BL = _flag(torch.lt, codes_BL, alphabet.BASES)
    if reverse_complement:
        codes_BL ^= base_BL * (reversed_B[:, None].byte() * 3)  # a base's complement is code ^ 3
    if any(edit.inserted_B1 is not None for edit in edits):
        new_BL = random.letters(random.read(stream_B, rows, letters))[:, :length]
        codes_BL = choose(_flag(torch.eq, codes_BL, _NEW), new_BL, codes_BL)
    altered_BL = torch.zeros_like(codes_BL)
    if substitution:
        draws_BL = random.shorts(random.read(stream_B, rows + letters, shorts))[:, :length]
        third = round(substitution * (1 << 16) / 3)
        for cut in (third, 2 * third, 3 * third):
            altered_BL += random.below_short(draws_BL, cut)  # in all 0 to 3; code ^ 1, 2, 3 are the others
        altered_BL *= base_BL
        codes_BL ^= altered_BL
        base_BL -= altered_BL.ne_(0)
    return View(
        codes_BL,
        source_BL,
        altered_BL.view(torch.bool),
        reversed_B,
        path.length_B1[:, 0].long(),
        base_BL.view(torch.bool),
        is_full=bool((path.length_B1 == length).all()),
    )


def _read(windows: Windows, path: Path, reversed_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """(source map int32, the letters there uint8) [B, L]: PAD at padding, _NEW where a letter is to be
    inserted.

    Reversed rows run backwards and are not complemented yet; padding stays at the end. Nothing large is
    allocated twice: a fresh page costs more than the arithmetic on it.
    """
    place_L = torch.arange(windows.length, dtype=torch.int32, device=path.length_B1.device)
    position = place_L[None]
    if reversed_B is not None:
        turned_B1 = reversed_B[:, None].int()
        position = (place_L * (1 - 2 * turned_B1)).add_(turned_B1 * (path.length_B1 - 1))
    source_BL, flag_BL = path.sources(position)
    for jump in path.jumps:
        if jump.first_B1 is not None:  # 0, or for a new letter -1: that is INSERTED, and all bits set
            torch.ge(position, jump.resumed_B1, out=flag_BL)
            source_BL |= flag_BL.sub_(_flag(torch.ge, position, jump.first_B1))
    torch.ge(place_L, path.length_B1, out=flag_BL).neg_()
    source_BL.bitwise_or_(flag_BL).add_(flag_BL)  # -1, then PADDED, which is -2

    # Two columns in front of each row are what PADDED and INSERTED read. The rows are read as one, since
    # index_select takes int32 where gather wants int64; so nothing may lie outside its row.
    rows, width = windows.codes_BS.shape[0], windows.codes_BS.shape[1] + 2
    assert rows * width < 1 << 31, f"{rows} windows of {width} letters need a larger index than int32"
    assert device.is_queued(source_BL.device) or bool((windows.high_B <= width - 2).all()), (
        "a window ends beyond its row"
    )
    codes_B2S = torch.nn.functional.pad(windows.codes_BS, (2, 0), value=alphabet.PAD)
    codes_B2S[:, 1].fill_(_NEW)
    start_B1 = torch.arange(2, 2 + rows * width, width, dtype=torch.int32, device=source_BL.device)[:, None]
    index_BL = torch.add(source_BL, start_B1, out=flag_BL)
    return source_BL, codes_B2S.view(-1).index_select(0, index_BL.view(-1)).view(source_BL.shape)


def _flag(compare: Callable[..., Tensor], left: Tensor, right: Tensor | int) -> Tensor:
    """``compare`` as 0 and 1 of the left side's type, not as bool: see random.below_short."""
    return compare(left, right, out=left.new_empty(0))


def choose(flag_BL: Tensor, one_BL: Tensor, other_BL: Tensor) -> Tensor:
    """uint8 [B, L]: ``one`` where ``flag`` is 1, ``other`` where it is 0."""
    return torch.bitwise_xor(one_BL, other_BL).mul_(flag_BL).bitwise_xor_(other_BL)
