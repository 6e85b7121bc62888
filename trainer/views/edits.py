"""The operations that views are made of, and how several of them become one path through the source window.

An operation is a function (word_B1, limit, length) -> Edit and a line in VIEWS. It gets 64 random bits a row,
its limit in bp from the config, and the length of the view. It may read up to ``limit`` bp beyond the ends of
the window: windows have a flank for that (flank_for), and a view that reads further is moved back.

Shapes: B samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.core import random
from trainer.data.windows import Windows


@dataclass(frozen=True)
class Edit:
    """What one operation does to each row, in positions of its output.

    Output before ``place`` is the input unchanged; then come ``inserted`` new letters, drawn at random; from
    there on, output x is input x + skip. Without a place, that holds everywhere. So an edit with a place
    replaces the ``inserted + skip`` (at least 0) input letters from there on by ``inserted`` new ones.
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


Operation = Callable[[Tensor, int, int], Edit]


def deletion(word_B1: Tensor, limit: int, length: int) -> Edit:
    """0 … ``limit`` letters are cut out at a random place; those behind them move up."""
    return Edit(uniform(word_B1, 32, limit + 1), place_B1=uniform(word_B1, 0, length))


def insertion(word_B1: Tensor, limit: int, length: int) -> Edit:
    """0 … ``limit`` random letters are put in at a random place; those behind them move down."""
    count_B1 = uniform(word_B1, 32, limit + 1)
    return Edit(-count_B1, place_B1=uniform(word_B1, 0, length), inserted_B1=count_B1)


def shift(word_B1: Tensor, limit: int, length: int) -> Edit:
    """The window moves by -``limit`` … ``limit`` along the genome: a translocation, not a roll."""
    return Edit(uniform(word_B1, 32, 2 * limit + 1) - limit)


def neighbour(word_B1: Tensor, limit: int, length: int) -> Edit:
    """The window beside it: it moves by exactly ``limit`` along the genome, to either side."""
    return Edit((2 * uniform(word_B1, 32, 2) - 1) * limit)


VIEWS: dict[str, Operation] = {
    "deletion": deletion,
    "insertion": insertion,
    "shift": shift,
    "neighbour": neighbour,
}


def uniform(word_B1: Tensor, low_bit: int, high: int) -> Tensor:
    """int32 [B, 1], uniform on 0 … high - 1, from 32 bits of each word starting at ``low_bit`` (0 or 32)."""
    return random.scaled(word_B1, low_bit, high).int()


def flank_for(*operations: Mapping[str, int]) -> int:
    """The flank in bp that the widest of these operation lists can read."""
    return max((sum(limits.values()) for limits in operations), default=0)


class _Jump(NamedTuple):
    """New letters at positions [first, resumed) of a view, if there is a first; then the source is ``skip``
    further."""

    first_B1: Tensor | None  # int32
    resumed_B1: Tensor  # int32
    skip_B1: Tensor  # int32


@dataclass(frozen=True)
class Path:
    """Position x of a forward view reads source x + offset + the skips of the jumps resumed by then."""

    offset_B1: Tensor  # int32
    jumps: Sequence[_Jump]
    length_B1: Tensor  # int32; padding follows

    def sources(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """(int32 source of each position, new letters aside; a scratch tensor of its shape and type).

        ``position``: int32, of any shape that broadcasts with [B, 1].
        """
        source = position + self.offset_B1
        flag = torch.empty_like(source)
        for jump in self.jumps:
            source.addcmul_(torch.ge(position, jump.resumed_B1, out=flag), jump.skip_B1)
        return source, flag

    def beside_new(self, position_B1: Tensor, *, forward: bool) -> Tensor:
        """The position; if a new letter is there, the next position in the direction without one."""
        spans = [(jump.first_B1, jump.resumed_B1) for jump in self.jumps if jump.first_B1 is not None]
        for first_B1, resumed_B1 in spans * len(spans):  # they may touch, in any order
            inside_B1 = (position_B1 >= first_B1) & (position_B1 < resumed_B1)
            position_B1 = torch.where(inside_B1, resumed_B1 if forward else first_B1 - 1, position_B1)
        return position_B1


def compose(edits: Sequence[Edit], windows: Windows) -> Path:
    """The edits, in their order, as one path inside [low, high) of each window.

    A path that reads beyond an end is moved back with all its edits; if it is longer than [low, high), the
    view ends in padding.
    """
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

    path = Path(offset_B1, jumps, torch.full_like(low_B1, windows.length))
    first_B1, _ = path.sources(path.beside_new(torch.zeros_like(low_B1), forward=True))
    last_B1, _ = path.sources(path.beside_new(path.length_B1 - 1, forward=False))
    back_B1 = (last_B1 - high_B1 + 1).clamp_(min=0)
    moved_B1 = (low_B1 - first_B1 + back_B1).clamp_(min=0) - back_B1
    end_B1 = high_B1 - windows.flank - moved_B1  # padding begins where ``high`` would be read
    for edit in edits:
        end_B1 = edit.reach(end_B1)
    return Path(offset_B1 + moved_B1, jumps, path.beside_new(end_B1, forward=True).clamp_(0, windows.length))
