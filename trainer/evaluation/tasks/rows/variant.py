"""What a row of a task of variants has beside its window and its effect."""

from typing import NamedTuple

from trainer.inference.variants.windows import Placed


class VariantRow(NamedTuple):
    """The variant in its window, and how many letters it lies from the centre of the window that was
    measured."""

    placed: Placed
    from_centre: float
