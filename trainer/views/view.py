"""Views: augmented readings of a source window, each with a source map along which labels and masks ride.

A source window is a stretch of the genome with a flank on both sides, so that deletions and shifts bring in
real neighbours. Each operation of VIEWS is an edit of a few numbers a row; the edits are composed into one
piecewise linear path through the window, which is written out position by position only once, and the letters
are gathered once.

Full-size tensors are integers, flags are 0 or 1, and a choice between them is arithmetic: the same bits on
CPU and GPU, and much faster on CPU than bool, where ``torch.where`` and comparisons into bool are not
vectorised.

Shapes: B samples, S = L + 2·flank source positions, L view positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_prep import alphabet
from trainer.core import random
from trainer.data.windows import Windows

INSERTED, PADDED = -1, -2
_NEW = alphabet.SIZE  # no code: stands where a letter is to be inserted


@dataclass(frozen=True)
class View:
    """Letters of one view and where each comes from.

    ``source_BL`` is the position in the source window, or INSERTED, or PADDED (only at the end, after
    ``length_B``). On a reversed row, a letter is the complement of its source. ``altered_BL``: the letter is
    not its source's. ``predictable_BL``: it is, and is A, C, G or T, so that it may be asked for.
    """

    codes_BL: Tensor  # uint8
    source_BL: Tensor  # int32
    altered_BL: Tensor  # bool
    reversed_B: Tensor  # bool
    length_B: Tensor  # int64
    predictable_BL: Tensor  # bool


@dataclass(frozen=True)
class Masked:
    """What a student reads, and what it is asked: ``target_BL`` says where, ``labels_BL`` (codes 0-3 there)
    what."""

    codes_BL: Tensor  # uint8
    labels_BL: Tensor  # uint8
    target_BL: Tensor  # bool


@dataclass(frozen=True)
class Edit:
    """What one operation does to each row, in positions of its output.

    Output before ``place`` is the input as it was; then come ``inserted`` new letters; from there on, output
    x is input x + skip. Without a place, that holds everywhere.
    """

    skip_B1: Tensor  # int32
    place_B1: Tensor | None = None  # int32
    inserted_B1: Tensor | None = None  # int32

    def reach(self, at_B1: Tensor) -> Tensor:
        """int32 [B, 1]: the first output position, new letters aside, that reads input ``at`` or what follows
        it."""
        if self.place_B1 is None:
            return at_B1 - self.skip_B1
        resumed_B1 = self.place_B1 if self.inserted_B1 is None else self.place_B1 + self.inserted_B1
        return torch.where(at_B1 < self.place_B1, at_B1, torch.maximum(at_B1 - self.skip_B1, resumed_B1))


def deletion(word_B1: Tensor, limit: int, length: int) -> Edit:
    """0 … ``limit`` letters are cut out at a random place; those behind them move up."""
    return Edit(_upto(word_B1, 32, limit + 1), place_B1=_upto(word_B1, 0, length))


def insertion(word_B1: Tensor, limit: int, length: int) -> Edit:
    """0 … ``limit`` random letters are put in at a random place; those behind them move down."""
    count_B1 = _upto(word_B1, 32, limit + 1)
    return Edit(-count_B1, place_B1=_upto(word_B1, 0, length), inserted_B1=count_B1)


def shift(word_B1: Tensor, limit: int, length: int) -> Edit:
    """The window moves by -``limit`` … ``limit`` along the genome: a translocation, not a roll."""
    return Edit(_upto(word_B1, 32, 2 * limit + 1) - limit)


# Each takes a word of 64 random bits a row, its limit in bp and the view's length.
VIEWS: dict[str, Callable[[Tensor, int, int], Edit]] = {
    "deletion": deletion,
    "insertion": insertion,
    "shift": shift,
}


def make_view(
    windows: Windows,
    *,
    name: str,
    operations: Mapping[str, int],
    substitution: float = 0.0,
    reverse_complement: float = 0.0,
) -> View:
    """The view ``name`` of each window: ``operations`` (of VIEWS: limit in bp) in their order, then the other
    two.

    Args:
        name: makes the draws of two views of one sample independent.
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
    path = _fit(edits, windows)
    source_BL, codes_BL = _read(windows, path, reversed_B if reverse_complement else None)

    base_BL = _flag(torch.lt, codes_BL, alphabet.BASES)
    if reverse_complement:
        codes_BL ^= base_BL * (reversed_B[:, None].byte() * 3)  # a base's complement is code ^ 3
    if any(edit.inserted_B1 is not None for edit in edits):
        new_BL = random.letters(random.read(stream_B, rows, letters))[:, :length]
        codes_BL = _choose(_flag(torch.eq, codes_BL, _NEW), new_BL, codes_BL)
    altered_BL = torch.zeros_like(codes_BL)
    if substitution:
        draws_BL = random.shorts(random.read(stream_B, rows + letters, shorts))[:, :length]
        third = round(substitution * (1 << 16) / 3)
        for cut in (
            third,
            2 * third,
            3 * third,
        ):  # 0 to 3 of them lie above a draw; code ^ 1, 2, 3 are the others
            altered_BL += random.below_short(draws_BL, cut)
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
    )


def mask(
    view: View, windows: Windows, *, name: str, rate: float, mask_share: float, random_share: float
) -> Masked:
    """The view with ``rate`` of its predictable letters asked for: of these, shares become MASK, random, or
    stay.

    No N, no inserted and no substituted letter is a target.
    Devlin et al. 2019 (BERT); the mask is drawn after the view, on its own positions. Probabilities are exact
    to 2⁻¹⁵.
    """
    words_Bn = random.words(windows.key_B, f"{name} mask", -(-windows.length // random.SHORTS))
    draws_BL = random.shorts(words_Bn)[:, : windows.length]
    shares = (1.0, min(1.0, mask_share + random_share), mask_share)
    asked, replaced, hidden = (4 * round(rate * share * (1 << 14)) for share in shares)
    predictable_BL = view.predictable_BL.view(torch.uint8)
    # The cuts are multiples of 4, so the two lowest bits of a draw between two of them are a uniform letter.
    new_BL = draws_BL.to(torch.uint8).bitwise_and_(3)
    new_BL = torch.maximum(new_BL, random.below_short(draws_BL, hidden).mul_(alphabet.MASK))
    codes_BL = _choose(random.below_short(draws_BL, replaced).mul_(predictable_BL), new_BL, view.codes_BL)
    target_BL = random.below_short(draws_BL, asked).mul_(predictable_BL).view(torch.bool)
    return Masked(codes_BL, view.codes_BL, target_BL)


def input_noise(view: View, windows: Windows, *, name: str, std: float) -> Tensor:
    """float32 [B, L, 4], normal with ``std``, for the A, C, G, T channels of the one-hot input; 0 at
    padding."""
    length = view.codes_BL.shape[1]
    noise_BN = random.normals(windows.key_B, f"{name} noise", length * alphabet.BASES)
    return noise_BN.view(-1, length, alphabet.BASES).mul_(std).mul_((view.source_BL != PADDED)[..., None])


def flank_for(*operations: Mapping[str, int]) -> int:
    """The flank in bp that the widest of these operation lists can reach into."""
    return max((sum(limits.values()) for limits in operations), default=0)


class _Jump(NamedTuple):
    """New letters at positions [first, resumed) of a view, if there is a first; then the source is ``skip``
    further."""

    first_B1: Tensor | None  # int32
    resumed_B1: Tensor  # int32
    skip_B1: Tensor  # int32


@dataclass(frozen=True)
class _Path:
    """Position x of a forward view reads source x + offset + the skips of the jumps resumed by then."""

    offset_B1: Tensor  # int32
    jumps: list[_Jump]
    length_B1: Tensor  # int32; what follows is padding

    def sources(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """int32, the source of each position (int32, any shape that broadcasts with [B, 1]), new letters
        aside; and a scratch tensor like it."""
        source = position + self.offset_B1
        flag = torch.empty_like(source)
        for jump in self.jumps:
            source.addcmul_(torch.ge(position, jump.resumed_B1, out=flag), jump.skip_B1)
        return source, flag

    def beside_new(self, position_B1: Tensor, *, forward: bool) -> Tensor:
        """The position, or if a new letter stands there, the next in the direction where none does."""
        spans = [(jump.first_B1, jump.resumed_B1) for jump in self.jumps if jump.first_B1 is not None]
        for first_B1, resumed_B1 in spans * len(spans):  # they may touch, in any order
            inside_B1 = (position_B1 >= first_B1) & (position_B1 < resumed_B1)
            position_B1 = torch.where(inside_B1, resumed_B1 if forward else first_B1 - 1, position_B1)
        return position_B1


def _fit(edits: list[Edit], windows: Windows) -> _Path:
    """The edits as one path inside [low, high): moved back where it sticks out, padding where it still does
    not fit."""
    low_B1, high_B1 = windows.low_B[:, None].int(), windows.high_B[:, None].int()
    offset_B1 = torch.full_like(low_B1, windows.flank)
    jumps: list[_Jump] = []
    for edit in edits:
        jumps = [
            _Jump(None if first is None else edit.reach(first), edit.reach(resumed), skip)
            for first, resumed, skip in jumps
        ]
        if edit.place_B1 is None:
            offset_B1 = offset_B1 + edit.skip_B1
        elif edit.inserted_B1 is None:
            jumps.append(_Jump(None, edit.place_B1, edit.skip_B1))
        else:
            jumps.append(_Jump(edit.place_B1, edit.place_B1 + edit.inserted_B1, edit.skip_B1))

    path = _Path(offset_B1, jumps, torch.full_like(low_B1, windows.length))
    first_B1, _ = path.sources(path.beside_new(torch.zeros_like(low_B1), forward=True))
    last_B1, _ = path.sources(path.beside_new(path.length_B1 - 1, forward=False))
    back_B1 = (last_B1 - high_B1 + 1).clamp_(min=0)
    moved_B1 = (low_B1 - first_B1 + back_B1).clamp_(min=0) - back_B1
    end_B1 = high_B1 - windows.flank - moved_B1  # padding begins where ``high`` would be read
    for edit in edits:
        end_B1 = edit.reach(end_B1)
    return _Path(offset_B1 + moved_B1, jumps, path.beside_new(end_B1, forward=True).clamp_(0, windows.length))


def _read(windows: Windows, path: _Path, reversed_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """(source map int32, the letters there uint8) [B, L]: PAD at padding, _NEW where a letter is to be
    inserted.

    Reversed rows run backwards and are not complemented yet; padding stays at the end. Nothing large is
    allocated
    twice: a fresh page costs more than the arithmetic on it.
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
    assert windows.codes_BS.is_cuda or bool((windows.high_B <= width - 2).all()), (
        "a window ends beyond its row"
    )
    codes_B2S = torch.nn.functional.pad(windows.codes_BS, (2, 0), value=alphabet.PAD)
    codes_B2S[:, 1] = _NEW
    start_B1 = torch.arange(2, 2 + rows * width, width, dtype=torch.int32, device=source_BL.device)[:, None]
    index_BL = torch.add(source_BL, start_B1, out=flag_BL)
    return source_BL, codes_B2S.view(-1).index_select(0, index_BL.view(-1)).view(source_BL.shape)


def _upto(word_B1: Tensor, low_bit: int, high: int) -> Tensor:
    """int32 [B, 1], uniform on 0 … high - 1."""
    return random.scaled(word_B1, low_bit, high).int()


def _flag(compare: Callable[..., Tensor], left: Tensor, right: Tensor | int) -> Tensor:
    """``compare`` as 0 and 1 of the left side's type, not as bool: see counter.below_short."""
    return compare(left, right, out=left.new_empty(0))


def _choose(flag_BL: Tensor, one_BL: Tensor, other_BL: Tensor) -> Tensor:
    """uint8 [B, L]: ``one`` where ``flag`` is 1, ``other`` where it is 0."""
    return torch.bitwise_xor(one_BL, other_BL).mul_(flag_BL).bitwise_xor_(other_BL)
