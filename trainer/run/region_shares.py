"""What share of the samples each BED file of regions chose, in the run's metrics."""

from collections.abc import Callable, Mapping

from trainer.data.config import ANYWHERE, Regions
from trainer.data.leaves import NO_TAG
from trainer.run.hooks import Hook, StepOutcome, is_due
from trainer.run.train_state import TrainState
from trainer.tracking.config import Track


class LogRegionShares(Hook):
    """``data/share_LABEL`` of each BED file, and of anywhere, every ``track.every`` steps: its share of the
    samples of all ranks since the run, or the length of its windows, began. Nothing without BED files.

    ``shares``: the reader's, by tag, before a step. It counts and reads nothing, so no rank waits.
    """

    def __init__(
        self, track: Track, regions: Regions, *, shares: Callable[[int], Mapping[int, float]]
    ) -> None:
        self._every, self._shares = track.every, shares
        self._names = {NO_TAG: ANYWHERE} | {tag: bed.name for tag, bed in enumerate(regions.beds)}

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if len(self._names) > 1 and (is_due(state.step, self._every) or step.is_last):
            shares = self._shares(state.step)
            step.metrics.update({f"data/share_{self._names[tag]}": share for tag, share in shares.items()})
