"""What the ranks agree on about run.dir before they train. On several ranks: tests/dist/test_ends.py."""

from pathlib import Path
from typing import Any

import pytest

import configs
from cluster.process.exits import EverywhereError
from cluster.storage import store
from configs import ConfigError
from tests.unit.test_run_status import checkpoint, config, exported
from trainer.core.collectives import Group
from trainer.run import artifacts, run_dir, run_status
from trainer.run.run_dir import Plan

ALONE = Group(0, 1)


def test_a_new_run_is_trained_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = config(tmp_path)
    assert run_dir.plan(one, ALONE) == Plan(one, same_run=False, datasets={})
    run_status.write_config(one)
    assert run_dir.plan(one, ALONE, locked=True) == Plan(one, same_run=True, datasets={})
    assert capsys.readouterr().err == ""


def test_a_run_that_goes_on_keeps_its_schedules_which_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(config(tmp_path), 10)
    longer = config(tmp_path, train__steps=30)
    plans = [run_dir.plan(longer, ALONE), run_dir.plan(longer, ALONE, locked=True)]
    for plan in plans:
        assert plan and plan.same_run
        assert configs.dump(plan.config) == configs.dump(
            config(tmp_path, train__steps=30, train__schedule_steps=20)
        )
    assert capsys.readouterr().err == (
        "train.steps is 30 now; the schedules stay those of 20 steps, as the run began\n"
    )


def test_a_finished_run_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = config(tmp_path)
    run_status.write_config(one)
    exported(one)
    run_status.write_finished(str(tmp_path), steps=20, delivered=True)
    assert run_dir.plan(one, ALONE) is None
    assert capsys.readouterr().err == f"{tmp_path} holds this run, finished; nothing to do\n"


@pytest.mark.parametrize("locked", [False, True])
def test_a_finished_run_that_mlflow_lacks_is_delivered_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    one = config(tmp_path)
    run_status.write_config(one)
    exported(one)
    run_status.write_finished(str(tmp_path), steps=20, delivered=False)
    delivered: list[Any] = []

    def deliver(of: Any, group: Group) -> None:
        delivered.append(of)
        with pytest.raises(EverywhereError, match=str(tmp_path)), run_dir.hold_lock(str(tmp_path), ALONE):
            pass

    monkeypatch.setattr(artifacts, "deliver", deliver)
    if locked:
        with run_dir.hold_lock(str(tmp_path), ALONE):
            assert run_dir.plan(one, ALONE, locked=True) is None
    else:
        assert run_dir.plan(one, ALONE) is None
    assert delivered == [one]


def test_what_prevents_the_run_ends_all_ranks_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(config(tmp_path, run__seed=1), 10)
    with pytest.raises(ConfigError, match=r"holds another run; .*\n  run.seed: was 1, now 0$"):
        run_dir.plan(config(tmp_path), ALONE)

    def away(uri: str) -> list[str]:
        raise store.StoreError(f"{uri}: the store is away")

    monkeypatch.setattr(store, "list_files", away)
    with pytest.raises(EverywhereError, match=r": the store is away$"):
        run_dir.plan(config(tmp_path), ALONE)
