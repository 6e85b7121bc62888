"""How sure a measured figure is."""

import math


def standard_error(accuracy: float, positions: float) -> float:
    """The standard error of an accuracy over ``positions`` scored positions, taken as independent.

    Never 0, so that a difference can be divided by it.
    """
    return math.sqrt(max(accuracy * (1 - accuracy), 1e-12) / positions)
