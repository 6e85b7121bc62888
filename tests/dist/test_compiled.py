"""Compiled training against the plain one: the same bits on 1, 2 and 4 ranks, and one resumed as the other.

The graphs run on ``aot_eager``: traced, differentiated and cut as with Inductor, but each operator is torch's
own. So nothing of ours may differ, while Inductor's own kernels round otherwise.
"""

from operator import le
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import markov_sequence, write_dataset
from tests.dist.runs import stretch
from tests.dist.steps import coupled_config, method, set_up, small_config
from tests.dist.test_equality import CONVOLUTIONS, toy_dataset
from tests.ranks import on_ranks
from tests.unit import test_presets as presets
from trainer.distill.step import train_step
from trainer.engine import compiled
from trainer.engine.compiled import CompiledForward

STEPS = 3
CHECKPOINTED = {"train__activation_checkpointing": True}
GROWING = {"data__length": [{"from_step": 0, "length": 48}, {"from_step": 1, "length": 64}]}
BF16_ZERO_2 = {"train__precision": "bf16", "train__zero_stage": 2}
# ranks -> name: (config, changes of it, graphs of the student and of the teacher)
CASES: dict[int, dict[str, tuple[Any, dict[str, Any], list[int]]]] = {
    1: {
        "ZeRO-0, coupled, 3 micro-batches, activation checkpointing": (
            coupled_config,
            {"train__zero_stage": 0, "train__micro_batch": 8, **CHECKPOINTED},
            [2, 1],  # its features are read once more before, without gradient
        ),
        "convolutions and windows that grow, activation checkpointing": (
            small_config,
            {**CONVOLUTIONS, **CHECKPOINTED, **GROWING},
            [2, 2],
        ),
    },
    2: {
        "bf16, ZeRO-1, 3 micro-batches": (
            small_config,
            {"train__precision": "bf16", "train__micro_batch": 4},
            [1, 1],
        ),
        "bf16, ZeRO-2, convolutions": (small_config, {**CONVOLUTIONS, **BF16_ZERO_2}, [1, 1]),
    },
    4: {"bf16, ZeRO-2": (small_config, BF16_ZERO_2, [1, 1])},
}


def without_inductor() -> list[CompiledForward]:
    """All forwards that this process compiles from here on, with ``aot_eager``."""
    made: list[CompiledForward] = []
    compiled.BACKEND = "aot_eager"
    begin = CompiledForward.__init__

    def kept(self: CompiledForward, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        made.append(self)

    CompiledForward.__init__ = kept  # type: ignore[method-assign]
    return made


def both_ways(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """``stretch`` of each case as it is and compiled, and which graphs were made."""
    made, found = without_inductor(), {}
    for name, values in cases.items():
        made.clear()
        plain = stretch(values, until=STEPS)
        assert not made
        values["train"]["compile"] = "default"
        fast = stretch(values, until=STEPS)
        found[name] = {
            "plain": told(plain),
            "compiled": told(fast),
            "works": [forward.works for forward in made],
            "graphs": [forward.graphs for forward in made],
        }
    return found


def told(run: dict[str, Any]) -> dict[str, Any]:
    return {key: run[key] for key in ("trained", "hashes", "applied")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toy_dataset(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize("world", CASES)
def test_compiled_steps_give_the_bits_of_plain_ones(toy: str, world: int) -> None:
    cases = {name: config(toy, **changes) for name, (config, changes, _) in CASES[world].items()}
    for by_case in on_ranks(world, both_ways, cases):
        for name, found in by_case.items():
            assert found["works"] == [True, True], name
            assert found["compiled"] == found["plain"], name
            assert found["plain"]["applied"] == STEPS
            # A batch of this rank may have a padded row or none: either is a graph.
            assert all(map(le, CASES[world][name][2], found["graphs"])), (name, found["graphs"])


def resumed_other_way(values: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    """Runs of four steps: whole, and saved after two and taken up again with ``train.compile`` changed."""
    made, found = without_inductor(), []
    for first, then in (("off", "off"), ("default", "off"), ("off", "default")):
        values["run"]["dir"] = f"{folder}/{first}-{then}"
        for mode, options in ((first, {"until": 2, "save_at": (2,)}), (then, {"until": 4, "resumed": True})):
            values["train"]["compile"] = mode
            run = stretch(values, **options)
        found.append(
            {"first": run["first"], "hash": run["hashes"][4], "names": sorted(run["whole"]["master"])}
        )
    assert len(made) == 4 and all(forward.works for forward in made)
    return found


def test_a_run_that_was_saved_compiled_goes_on_plain_and_the_other_way_round(
    toy: str, tmp_path: Path
) -> None:
    plain, *others = on_ranks(1, resumed_other_way, small_config(toy), str(tmp_path))[0]
    assert plain["first"] == 2
    assert others == [plain, plain]


def one_step_of_each(configs: dict[str, dict[str, Any]]) -> dict[str, list[bool]]:
    made, found = without_inductor(), {}
    for name, values in configs.items():
        made.clear()
        config, engine, now, reader = set_up(values)
        micro = reader.batch(0).split(config.train.rows_at_once(1))
        train_step(engine, now.teacher, micro, method=method(config), states=now.centres)
        reader.close()
        found[name] = [forward.works and forward.graphs > 0 for forward in made]
    return found


def test_the_forwards_of_every_preset_are_whole_graphs(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", {"train": [markov_sequence(30_000, seed=1)]}, soft=True)
    small = {
        name: presets.small(name, name, tmp_path, "train.compile=default").model_dump()
        for name in presets.LOSSES
    }
    assert small.keys() == {path.stem for path in (presets.ROOT / "configs/train").glob("*.yaml")} - {
        "reference"
    }
    assert on_ranks(1, one_step_of_each, small)[0] == {name: [True, True] for name in small}
