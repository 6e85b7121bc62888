"""The config section ``val``."""

from configs import Section
from configs.numbers import Positive


class Validation(Section):
    every: Positive = 500
    windows: Positive = 512
    batch: Positive = 32
