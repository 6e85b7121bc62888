"""Results that need not be computed, because MLflow has them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trainer.evaluation.tasks.config import ENCODER_MODES
from trainer.evaluation.tasks.results.results import Result, Unit
from trainer.evaluation.tasks.results.results_log import StoredResult

_SCRATCH = "scratch"  # depends on the network's sizes, and not on its weights


@dataclass(frozen=True)
class Content:
    """What a result depends on but its version: two units with the same one have the same result.

    ``architecture`` is "" where the mode has no network.
    """

    model: str
    task: str
    settings: str
    mode: str
    seed: int
    architecture: str


def content_of(unit: Unit, settings: str, architecture: str) -> Content | None:
    """None if the result depends on the version's weights, or its architecture is not known."""
    if unit.mode in ENCODER_MODES or (unit.mode == _SCRATCH and not architecture):
        return None
    needed = architecture if unit.mode == _SCRATCH else ""
    return Content(unit.model, unit.task, settings, unit.mode, unit.seed, needed)


class KnownResults:
    """The finished results of a model, of all its versions."""

    def __init__(self, stored: Iterable[StoredResult] = ()) -> None:
        self._own: dict[tuple[Unit, str], StoredResult] = {}
        self._by_content: dict[Content, StoredResult] = {}
        for one in stored:
            self.add(one)

    def add(self, stored: StoredResult) -> None:
        result = stored.result
        self._own[result.unit, result.settings] = stored
        content = content_of(result.unit, result.settings, stored.architecture)
        if content and not stored.computed_by:
            self._by_content.setdefault(content, stored)

    def of(self, unit: Unit, settings: str) -> StoredResult | None:
        """The result of this very unit; the last one of several."""
        return self._own.get((unit, settings))

    def elsewhere(self, unit: Unit, settings: str, architecture: str) -> StoredResult | None:
        """A result of another version that is this unit's, too."""
        content = content_of(unit, settings, architecture)
        return self._by_content.get(content) if content else None


def as_result_of(unit: Unit, stored: StoredResult) -> Result:
    """The result of another version as this ``unit``'s; it took no time."""
    return replace(stored.result, unit=unit, seconds=0.0)
