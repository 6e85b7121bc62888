"""What a check of the doctor finds."""

from dataclasses import dataclass
from typing import Literal

from configs import redact


@dataclass(frozen=True)
class Finding:
    """``what`` was checked, its ``state``, what was ``found``, and ``advice`` where the state is not ok."""

    what: str
    state: Literal["ok", "warning", "FAILED"]
    found: str
    advice: str = ""


def graded(what: str, found: str, advice: str, *, fails: bool = False, warns: bool = False) -> Finding:
    """FAILED, a warning, or ok without the ``advice``."""
    state: Literal["ok", "warning", "FAILED"] = "FAILED" if fails else "warning" if warns else "ok"
    return Finding(what, state, redact(found), advice if fails or warns else "")
