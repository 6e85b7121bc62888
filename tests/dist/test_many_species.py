"""The ENCODE files as one dataset of many species, a clade held out: built, grown by one, trained on."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from configs import load
from data_prep.config import DataConfig
from data_prep.dataset.build import build
from data_prep.dataset.read import load_manifest
from data_prep.dataset.verify import verify
from data_prep.shards import SPLITS
from tests.dist.steps import run_cases, small_config
from tests.ranks import on_ranks

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DNA_DATA", ROOT / ".." / "shared" / "data")).absolute()
STEPS, NEW = 50, "cow.ENm001"

pytestmark = [
    pytest.mark.skipif(not (DATA / "genomes" / "encode").is_dir(), reason="DNA_DATA has no ENCODE files"),
    pytest.mark.usefixtures("local_ray"),
]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    uri = tmp_path_factory.mktemp("species") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNA_DATA", str(DATA))
        config = load(
            DataConfig, str(ROOT / "configs/data/encode-clades.yaml"), [f"output={uri}", "workers=2"]
        )
    others = tuple(reference for reference in config.references if reference.name != NEW)
    assert len(others) == 43 == len(config.references) - 1
    build(config.model_copy(update={"references": others}))
    before = {path.name: path.read_bytes() for path in uri.glob("*.tar")}
    built = build(config.model_copy(update={"grow": True}))
    assert built.grown and built.grown.added == (NEW,)
    assert before.items() < {path.name: path.read_bytes() for path in uri.glob("*.tar")}.items()
    assert verify(str(uri)) == []
    return uri


def test_the_clade_is_held_out_whole(grown: Path) -> None:
    manifest = load_manifest(str(grown))
    fish = {"fugu", "tetraodon", "zebrafish"}
    of = {
        split: {assembly.split(".")[0] for assembly, _ in manifest.blocks(split).columns.places}
        for split in SPLITS
    }
    assert of["val"] == fish and not of["train"] & fish and len(of["train"]) == 20 and NEW[:3] in of["train"]


def test_fifty_steps_are_the_same_on_one_and_two_ranks(grown: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], int]] = {"species": (small_config(str(grown)), STEPS)}
    (alone,), pair = (on_ranks(world, run_cases, cases) for world in (1, 2))
    samples = {key: row for rank in pair for key, row in rank["species"]["samples"].items()}
    assert len(samples) == STEPS * 24 and samples == alone["species"]["samples"]
    for rank in pair:
        for one, two in zip(rank["species"]["losses"], alone["species"]["losses"], strict=True):
            assert one.keys() == two.keys()
            assert all(math.isclose(one[name], two[name], rel_tol=1e-5) for name in one)
