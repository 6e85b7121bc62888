"""The config section ``health``."""

from typing import Annotated, Literal

from pydantic import Field

from configs import Section
from configs.numbers import Positive


class Health(Section):
    """Every so many steps (0: never) the batch at hand is looked at for signs of collapse.

    ``patience``: readings in a row that must show it. ``on_collapse``: ``stop`` ends the run, ``warn`` only
    says so.
    """

    every: Annotated[int, Field(ge=0)] = 10
    patience: Positive = 5
    on_collapse: Literal["warn", "stop"] = "warn"
