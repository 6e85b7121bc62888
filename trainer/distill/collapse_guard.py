"""What collapsed, in one sentence: a watch over the health readings of a run.

A reading is judged by limits that must all be broken at once for a kind of collapse, ``patience`` readings in
a row. Young and healthy runs break single ones: the windows of an untrained network lie close together, its
teacher prefers one prototype for all until the centre has followed, and while the student learns nothing but
the mean of a nearly uniform teacher KL is small. A collapsed teacher is one that says the same of every
sample, at each summary position by itself, AND that the student already agrees with, so that nothing is left
to learn; hence the limit on KL. A teacher that is uniform in effect still tells single samples apart by
hundredths of a nat, which a student that gets nowhere never learns: hence the limits on information, and on
what is learned of it.

The defaults are for a reading every 10 steps or so: a centre with momentum 0.9 may swing through one
prototype for all and out again in 20 steps. Uniformity and alignment have no limit of their own: near 0,
uniformity is -4 · std², and views that agree are what training is for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.losses.prototypes import PrototypeLoss


@dataclass(frozen=True)
class _Sign:
    """``metric`` is below (or above) its limit."""

    metric: str
    limit: float
    above: bool = False

    def is_broken(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit

    def describe(self, value: float) -> str:
        name, side = self.metric.removeprefix("health/"), "above" if self.above else "below"
        return f"{name} {value:.4g} is {side} {self.limit:.4g}"


@dataclass(frozen=True)
class _Kind:
    name: str
    what: str
    signs: tuple[_Sign, ...]


@dataclass(frozen=True)
class Limits:
    """Where a sign of collapse begins. A minimum of 0 and a maximum that cannot be reached switch it off;
    LOG.md has where the defaults are from.

    Attributes:
        min_std: all embeddings are the same point where embedding_std is below; 1 is isotropic.
        min_rank: few dimensions are left where centred_rank is below.
        max_dead: the same, where the share dead_dimensions is above.
        min_prototypes: the teacher is one-hot on too few prototypes where fewer are any sample's first
            choice, or where exp(entropy of the mean assignment) is below, and KL below ``max_kl``; not judged
            where K is no more.
        max_entropy, min_information, min_learned: the teacher is uniform in effect where its entropy is above
            this share of log K, what it tells of single samples and what the student has learned of that are
            below so many nats, and KL is below ``max_kl``.
        max_drift: the centre runs away where it moves by more than this many times its spread from reading to
            reading.
    """

    min_std: float = 0.001
    min_rank: float = 1.2
    max_dead: float = 0.5
    min_prototypes: float = 2.0
    max_entropy: float = 0.98
    min_information: float = 0.1
    min_learned: float = 0.01
    max_drift: float = 3.0


@dataclass(frozen=True)
class PrototypeWatch:
    """A loss over K prototypes to be watched: what its rows are called, its metrics, its limit on KL in
    nats."""

    prototypes: int
    rows: str  # in words
    metrics: Mapping[str, str]  # of prototype_metrics.readings -> name of the metric health/NAME
    max_kl: float
    prefix: str  # of the names of its kinds of collapse

    @classmethod
    def of(cls, term: PrototypeLoss[Any]) -> "PrototypeWatch":
        return cls(term.config.prototypes, term.rows_called, term.metrics, term.max_kl, term.guard_prefix)

    def kinds(self, limits: Limits) -> "list[_Kind]":
        assert self.prototypes >= 1, f"{self.prototypes} prototypes for {self.rows}"
        names = ("entropy", "kl", "usage", "chosen", "information", "learned")
        entropy, kl, usage, chosen, information, learned = (f"health/{self.metrics[name]}" for name in names)
        agreed, even = _Sign(kl, self.max_kl), limits.max_entropy * math.log(self.prototypes)
        uniform = _Kind(
            f"{self.prefix}uniform",
            f"the teacher is uniform over the prototypes for all {self.rows}, and the student too: "
            "nothing to learn",
            (
                _Sign(entropy, even, above=True),
                _Sign(information, limits.min_information),
                _Sign(learned, limits.min_learned),
                agreed,
            ),
        )
        if self.prototypes <= limits.min_prototypes:  # every teacher uses too few of them
            return [uniform]
        fewest = limits.min_prototypes / self.prototypes
        so = f"the same prototype for all {self.rows}, and the student agrees"
        return [
            uniform,
            _Kind(f"{self.prefix}one-hot", f"the teacher is one-hot on {so}", (_Sign(usage, fewest), agreed)),
            _Kind(
                f"{self.prefix}choice",
                f"the teacher prefers {so}",
                (_Sign(chosen, fewest), _Sign(entropy, even), agreed),
            ),
        ]


class CollapseGuard:
    """Names what collapsed from ``health/…`` readings; of what is not read it says nothing.

    Args:
        watches: the losses over prototypes; without any, prototypes are not judged.
        patience: readings in a row that must show a collapse, at least 1.
        limits: where a sign begins.
    """

    def __init__(
        self, watches: Sequence[PrototypeWatch] = (), *, patience: int = 5, limits: Limits = Limits()
    ) -> None:
        assert patience >= 1, f"a patience of {patience} readings"
        self.patience = patience
        self._kinds = [
            _Kind(
                "point",
                "the embeddings of all samples are the same point",
                (_Sign("health/embedding_std", limits.min_std),),
            ),
            _Kind(
                "rank",
                "the embeddings differ in few dimensions only",
                (_Sign("health/centred_rank", limits.min_rank),),
            ),
            _Kind(
                "dead",
                "most dimensions of the embeddings are the same for all samples",
                (_Sign("health/dead_dimensions", limits.max_dead, above=True),),
            ),
            _Kind(
                "drift",
                "the teacher's centre runs away",
                (_Sign("health/centre_drift", limits.max_drift, above=True),),
            ),
        ]
        for watch in watches:
            self._kinds += watch.kinds(limits)
        self._streaks = {kind.name: 0 for kind in self._kinds}

    def check(self, readings: Mapping[str, float], *, step: int) -> str | None:
        """The sentence that says what collapsed, with values and limits; None while nothing has.

        Said again every ``patience`` readings for as long as it lasts; of several kinds the one that has
        lasted longest is told. A kind whose metrics are missing or not finite is not judged: its streak stays
        as it was.
        """
        found: dict[str, str] = {}
        for kind in self._kinds:
            values = [readings.get(sign.metric, math.nan) for sign in kind.signs]
            if not all(map(math.isfinite, values)):
                continue
            pairs = list(zip(kind.signs, values, strict=True))
            streak = (
                self._streaks[kind.name] + 1 if all(sign.is_broken(value) for sign, value in pairs) else 0
            )
            self._streaks[kind.name] = streak
            if streak and streak % self.patience == 0:
                evidence = ", ".join(sign.describe(value) for sign, value in pairs)
                found[kind.name] = f"step {step}: {kind.what} ({evidence}, {streak} readings in a row)"
        return found[max(found, key=self._streaks.__getitem__)] if found else None

    @property
    def collapsed(self) -> bool:
        """Whether something had collapsed at the last reading."""
        return any(streak >= self.patience for streak in self._streaks.values())

    def state(self) -> dict[str, int]:
        """Kind -> readings in a row that showed it: all that ``restore`` needs."""
        return dict(self._streaks)

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from ``state``; kinds that it does not know begin at 0."""
        self._streaks = {kind.name: int(state.get(kind.name, 0)) for kind in self._kinds}
