"""Which version of a model has the alias candidate: the best by held-out accuracy, not the last to finish."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class HeldOut:
    """What a version scored, by which it is compared.

    ``name``: as sentences call it. ``accuracy``: of masked letters on held-out windows. ``windows``: sha256
    of these windows and of what is hidden in them. None: not known.
    """

    name: str
    accuracy: float | None = None
    windows: str | None = None


@dataclass(frozen=True)
class Decision:
    """Whether the alias moves, and why: one sentence."""

    moves: bool
    reason: str


def decide(new: HeldOut, standing: HeldOut | None, *, model: str, always: bool = False) -> Decision:
    """Whether ``new`` becomes candidate of ``model`` in place of ``standing``, which None is where there is
    none.

    It does if there is none, if its accuracy is not below the other's on the same windows, or ``always``.
    """
    becomes = f"{new.name} becomes candidate of {model}"
    if standing is None:
        return Decision(True, f"{becomes}: it has had none")
    fault = _incomparable(new, standing)
    ours, theirs = new.accuracy, standing.accuracy
    if not fault and ours is not None and theirs is not None:
        if ours >= theirs:
            figures = f"held-out accuracy {ours:.4f}, not below the {theirs:.4f} of {standing.name}"
            return Decision(True, f"{becomes}: {figures} on the same windows")
        fault = f"held-out accuracy {ours:.4f} of {new.name} is below its {theirs:.4f} on the same windows"
    if always:
        return Decision(
            True, f"{becomes} in place of {standing.name}, as track.candidate is always ({fault})"
        )
    return Decision(
        False,
        f"{standing.name} stays candidate of {model}: {fault}; to move it all the same, set the alias in "
        "MLflow, or train with track.candidate=always",
    )


def _incomparable(new: HeldOut, standing: HeldOut) -> str:
    """Why the two cannot be compared; "" if they can."""
    for each in (new, standing):
        if each.accuracy is None:
            return f"{each.name} has no held-out accuracy to compare"
        if not math.isfinite(each.accuracy):
            return f"{each.name} has held-out accuracy {each.accuracy}"
        if each.windows is None:
            return f"it is not noted on which held-out windows {each.name} was measured"
    if new.windows != standing.windows:
        digests = f"{str(new.windows)[:12]} and {str(standing.windows)[:12]}"
        return (
            f"{new.name} and {standing.name} were measured on different held-out windows (val.windows_sha256 "
            f"{digests})"
        )
    return ""
