"""The config section ``checkpoint``."""

from typing import Annotated

from pydantic import Field

from configs import Section
from configs.numbers import Positive


class Checkpoint(Section):
    """The whole state under run.dir/checkpoints every so many steps and at the end (0: only when told to
    stop).

    Kept are the newest ``keep_last``, and those whose step ``keep_every`` divides (0: none). After
    ``max_failed`` that could not be written, one after the other, the run ends.
    """

    every: Annotated[int, Field(ge=0)] = 1000
    keep_last: Positive = 2
    keep_every: Annotated[int, Field(ge=0)] = 0
    max_failed: Positive = 3
