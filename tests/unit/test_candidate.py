"""Which version is candidate: a table of what both scored, and the sentence that says why."""

import re

import pytest

from trainer.tracking.candidate import HeldOut, decide

NEW = HeldOut("step 6", 0.41, "aa")
STAYS = "version 3 stays candidate of m: "
REMEDY = "; to move it all the same, set the alias in MLflow, or train with track.candidate=always"


@pytest.mark.parametrize(
    ("new", "standing", "moves", "reason"),
    [
        (NEW, None, True, "step 6 becomes candidate of m: it has had none"),
        (HeldOut("step 6"), None, True, "step 6 becomes candidate of m: it has had none"),
        (
            NEW,
            HeldOut("version 3", 0.40, "aa"),
            True,
            "step 6 becomes candidate of m: held-out accuracy 0.4100, not below the 0.4000 of version 3 on "
            "the same windows",
        ),
        (NEW, HeldOut("version 3", 0.41, "aa"), True, "not below the 0.4100 of version 3"),
        (
            NEW,
            HeldOut("version 3", 0.42, "aa"),
            False,
            STAYS + "held-out accuracy 0.4100 of step 6 is below its 0.4200 on the same windows" + REMEDY,
        ),
        (
            NEW,
            HeldOut("version 3", 0.1, "bb"),
            False,
            STAYS
            + "step 6 and version 3 were measured on different held-out windows "
            + "(val.windows_sha256 aa and bb)"
            + REMEDY,
        ),
        (
            NEW,
            HeldOut("version 3", 0.1),
            False,
            STAYS + "it is not noted on which held-out windows version 3 was",
        ),
        (HeldOut("step 6", 0.5), HeldOut("version 3", 0.1), False, "on which held-out windows step 6 was"),
        (
            NEW,
            HeldOut("version 3", None, "aa"),
            False,
            STAYS + "version 3 has no held-out accuracy to compare" + REMEDY,
        ),
        (
            HeldOut("step 6"),
            HeldOut("version 3", 0.1, "aa"),
            False,
            "step 6 has no held-out accuracy to comp",
        ),
        (
            HeldOut("step 6", float("nan"), "aa"),
            HeldOut("version 3", 0.1, "aa"),
            False,
            "step 6 has held-out accuracy nan",
        ),
    ],
)
def test_who_is_candidate(new: HeldOut, standing: HeldOut | None, moves: bool, reason: str) -> None:
    decision = decide(new, standing, model="m")
    assert decision.moves == moves
    assert re.search(re.escape(reason), decision.reason), decision.reason
    always = decide(new, standing, model="m", always=True)
    assert always.moves
    if not moves:
        assert "step 6 becomes candidate of m in place of version 3, as track.candidate is always (" in (
            always.reason
        )
