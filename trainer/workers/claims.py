"""Which of several drivers computes which unit: claims in MLflow, with a lease by our own clock.

A driver is a process of ``python -m cluster finetune``. Several may work on the same version: two that watch,
or a new one beside what is left of one that was killed. They share the version's ledger run (results_log.py).

- A claim is a param ``claim.UNIT.N`` of the ledger, its value the driver that computes the unit at the N-th
  attempt. MLflow sets a param once, so one driver gets it.
- A driver says that it lives by its tag ``driver.ID``, which it rewrites every third of LEASE_S. No process
  trusts another's clock: a driver is gone once its tag has not changed while *we* watched it for LEASE_S. One
  of this machine whose process has ended is gone at once (cluster/storage/lease.py), and so is one that said
  farewell. Whoever finds the last claim of a unit with a driver that is gone sets attempt N + 1.
- A unit that failed for its own reason has a param ``failed.UNIT.N`` with the sentence. The drivers that run
  take it as failed; one that starts later tries again.

Claims save work and promise nothing: a driver that was stopped for longer than its lease may compute a unit
that another has taken over. That each unit has one result is decided by the ledger's ``done.UNIT``, which
needs no clock.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum

from cluster.storage.lease import Lease
from configs import redact
from trainer.tracking.shared_run import RunState, SharedRuns

LEASE_S = 120.0
_FAREWELL = "ended"


class Standing(Enum):
    """How a unit stands, for this driver."""

    FREE = "free"
    OURS = "ours"
    THEIRS = "theirs"  # of a driver that lives
    DONE = "done"
    FAILED = "failed"


@dataclass
class Owner:
    """This driver. Its tag grows with every beat; ``clock`` in seconds."""

    lease_s: float = LEASE_S
    clock: Callable[[], float] = time.monotonic
    lease: Lease = field(init=False)

    def __post_init__(self) -> None:
        self.lease = Lease.of_this_process(None, self.lease_s)

    @property
    def id(self) -> str:
        return self.lease.holder

    def next_tag(self) -> str:
        self.lease = replace(self.lease, number=self.lease.number + 1)
        return json.dumps(asdict(self.lease))


class Claims:
    """The claims of one ledger run. Its calls raise TrackError."""

    def __init__(self, shared: SharedRuns, ledger: str, owner: Owner) -> None:
        self._shared, self._ledger, self._owner = shared, ledger, owner
        self._seen: dict[str, tuple[str, float]] = {}  # driver -> its tag, and when we saw that first
        self._beaten: float | None = None
        self._void: set[str] = set()  # units whose result was deleted since
        self._params: Mapping[str, str] = {}
        self._looked = 0.0
        self.beat()
        self.refresh()
        self._old_failures = {key for key in self._params if key.startswith("failed.")}

    def beat(self) -> None:
        """Say that this driver lives, if it is time."""
        now = self._owner.clock()
        if self._beaten is None or now - self._beaten >= self._owner.lease_s / 3:
            self._shared.tag(self._ledger, f"driver.{self._owner.id}", self._owner.next_tag())
            self._beaten = now

    def refresh(self) -> None:
        """Read what the other drivers have written."""
        asked = self._owner.clock()
        self._take_in(self._shared.read(self._ledger), asked)

    def standing(self, unit: str) -> Standing:
        """How the unit with this digest stood at the last ``refresh``."""
        if f"done.{unit}" in self._params and unit not in self._void:
            return Standing.DONE
        attempt = self._attempt(unit)
        if attempt == 0:
            return Standing.FREE
        failure = f"failed.{unit}.{attempt}"
        if failure in self._params:
            return Standing.FREE if failure in self._old_failures else Standing.FAILED
        driver = self._params[f"claim.{unit}.{attempt}"]
        if driver == self._owner.id:
            return Standing.OURS
        return Standing.FREE if self.is_gone(driver) else Standing.THEIRS

    def take(self, unit: str) -> Standing:
        """OURS if the unit could be claimed, or was ours; else how it stands instead."""
        while (standing := self.standing(unit)) is Standing.FREE:
            key = f"claim.{unit}.{self._attempt(unit) + 1}"
            if self._shared.settle(self._ledger, key, self._owner.id) == self._owner.id:
                self._params = {**self._params, key: self._owner.id}
            else:
                self.refresh()
        return standing

    def void(self, unit: str) -> None:
        """The result that the ledger counts for the unit was deleted: it is to be computed again."""
        self._void.add(unit)

    def finish(self, unit: str) -> None:
        """Note that a claimed work is done that leaves no run."""
        stands = self._shared.settle(self._ledger, f"done.{unit}", self._owner.id)
        self._params = {**self._params, f"done.{unit}": stands}

    def fail(self, unit: str, reason: str) -> None:
        """The unit failed for its own reason, and would again."""
        attempt = self._attempt(unit)
        stands = self._shared.settle(self._ledger, f"failed.{unit}.{attempt}", redact(reason)[:1000])
        self._params = {**self._params, f"failed.{unit}.{attempt}": stands}

    def reason(self, unit: str) -> str:
        """Why a unit is FAILED."""
        return self._params.get(f"failed.{unit}.{self._attempt(unit)}", "")

    def leave(self) -> None:
        """Say that this driver ends: what it has not finished is free at once."""
        self._shared.tag(self._ledger, f"driver.{self._owner.id}", _FAREWELL)

    def is_gone(self, driver: str) -> bool:
        """Whether a driver has ended, or has not beaten between two looks of ours that the lease's time, or
        more, lies between."""
        if driver == self._owner.id:
            return False
        tag, since = self._seen.get(driver, ("", None))
        if since is None or tag == _FAREWELL:
            return True
        return _ended_here(tag) or self._looked - since >= self._owner.lease_s

    def is_gone_or_us(self, driver: str) -> bool:
        return driver == self._owner.id or self.is_gone(driver)

    def _take_in(self, state: RunState, asked: float) -> None:
        """``state`` was read after ``asked`` and before now: a tag changed after the one, or stood till the
        other, at the least."""
        self._params, self._looked, now = state.params, asked, self._owner.clock()
        for key, tag in state.tags.items():
            kind, _, driver = key.partition(".")
            if kind == "driver" and self._seen.get(driver, ("", 0.0))[0] != tag:
                self._seen[driver] = (tag, now)

    def _attempt(self, unit: str) -> int:
        """The number of the last attempt at a unit; 0 if there was none."""
        number = 0
        while f"claim.{unit}.{number + 1}" in self._params:
            number += 1
        return number


def _ended_here(tag: str) -> bool:
    """Whether the driver with this tag was of this machine, and has ended."""
    try:
        return bool(Lease(**json.loads(tag)).is_dead_here())
    except (ValueError, TypeError):
        return False
