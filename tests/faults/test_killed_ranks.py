"""A rank that is killed wherever it may be, and a run that is told to stop: the same command goes on, and
ends with the teacher of the run that nothing befell."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import s3 as s3_service
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import small_config
from tests.faults import doomed
from tests.ranks import endings
from trainer.models import pretrained

STEPS, EVERY, WORLD = 8, 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
    write_dataset(folder / "data", contigs, soft=True)
    return folder


def config(folder: Path, run_dir: str, **changes: Any) -> dict[str, Any]:
    return small_config(
        str(folder / "data"),
        run__dir=run_dir,
        run__name=Path(run_dir).name,
        val__windows=8,
        val__every=1000,
        track__uri=f"sqlite:///{folder}/mlflow.db",
        train__steps=STEPS,
        train__micro_batch=6,
        data__workers=2,
        checkpoint__every=EVERY,
        track__registered_model=None,
        **changes,
    )


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> bytes:
    found = endings(WORLD, doomed.run, config(folder, str(folder / "undisturbed")))
    assert [ending.code for ending in found] == [0, 0], found
    return (folder / "undisturbed" / pretrained.WEIGHTS).read_bytes()


def goes_on(values: dict[str, Any], *, after: int, environment: dict[str, str] | None = None) -> None:
    """Run to the end; it must have begun after step ``after``."""
    found = endings(WORLD, doomed.run, values, (), environment)
    assert [(ending.fault, ending.value[0]) for ending in found] == [("", 0), ("", 0)], found
    said = found[0].value[1]
    assert (f"going on after step {after}," in said) == bool(after), said


@pytest.mark.parametrize(
    ("what", "step", "rank", "after"),
    [
        ("backward", 5, 1, 3),
        pytest.param("forward", 5, 0, 3, marks=pytest.mark.faults),
        pytest.param("collective", 8, 1, 6, marks=pytest.mark.faults),
        pytest.param("forward", 2, 1, 0, marks=pytest.mark.faults),  # before the first checkpoint
    ],
)
def test_a_killed_rank_loses_no_more_than_the_steps_since_the_checkpoint(
    folder: Path, undisturbed: bytes, what: str, step: int, rank: int, after: int
) -> None:
    run_dir = folder / f"{what}-{step}"
    values = config(folder, str(run_dir))
    found = endings(WORLD, doomed.run, values, [(what, step, rank)])
    assert found[rank].code == -9
    code, said = found[1 - rank].value
    assert code == 1
    assert f"error: lost its peers in step {step}, " in said
    goes_on(values, after=after)
    assert (run_dir / pretrained.WEIGHTS).read_bytes() == undisturbed


@pytest.mark.parametrize(
    ("what", "rank"),
    [
        ("checkpoint", 1),
        pytest.param("publication", 0, marks=pytest.mark.faults),
    ],
)
def test_a_rank_killed_while_it_saves_leaves_the_checkpoint_before(
    folder: Path, undisturbed: bytes, what: str, rank: int
) -> None:
    run_dir = folder / what
    values = config(folder, str(run_dir))
    found = endings(WORLD, doomed.run, values, [(what, 6, rank)])
    assert found[rank].code == -9
    assert json.loads((run_dir / "checkpoints/latest.json").read_text())["step"] == 3
    goes_on(values, after=3)
    assert (run_dir / pretrained.WEIGHTS).read_bytes() == undisturbed
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "latest.json",
        "step-00000006",
        "step-00000008",
    ]


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("told to stop", 75),
        pytest.param("interrupted", 130, marks=pytest.mark.faults),
    ],
)
def test_a_run_that_one_rank_is_told_to_stop_saves_the_step_it_is_in(
    folder: Path, undisturbed: bytes, what: str, code: int
) -> None:
    run_dir = folder / what.replace(" ", "-")
    values = config(folder, str(run_dir))
    found = endings(WORLD, doomed.run, values, [(what, 5, 1)])
    assert [ending.value[0] for ending in found] == [code, code]
    assert "told to stop: step 5 is saved, and the same command goes on from there" in found[0].value[1]
    goes_on(values, after=5)
    assert (run_dir / pretrained.WEIGHTS).read_bytes() == undisturbed


@pytest.mark.faults
def test_a_rank_killed_while_it_uploads(folder: Path, undisturbed: bytes, s3: s3_service.S3) -> None:
    values = config(folder, f"{s3.uri}/run")
    environment = s3_service.environment(s3.proxy) | {"DNA_STORE_RETRY_SECONDS": "0.05"}
    found = endings(WORLD, doomed.run, values, [("upload", 6, 1)], environment)
    assert found[1].code == -9
    goes_on(values, after=3, environment=environment)
    assert s3.client.get_object(Bucket=s3.bucket, Key="run/model.safetensors")["Body"].read() == undisturbed


@pytest.mark.faults
def test_a_clock_that_jumps_changes_nothing(folder: Path, undisturbed: bytes) -> None:
    run_dir = folder / "clock"
    found = endings(WORLD, doomed.run, config(folder, str(run_dir)), [("clock", 4, 0), ("clock", 5, 1)])
    assert [ending.value[0] for ending in found] == [0, 0], found
    assert (run_dir / pretrained.WEIGHTS).read_bytes() == undisturbed
