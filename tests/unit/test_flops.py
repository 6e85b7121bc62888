"""FLOPs by formula against those that a step really asks of matrix products, counted one by one."""

from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import coupled_config, method, set_up, small_config
from tests.ranks import on_ranks
from trainer.distill.step import train_step
from trainer.models import pretrained
from trainer.run.flops import step_flops

# Of these sizes what a formula leaves out, and the blocks that products are padded to, count little.
SIZES = {
    "model__num_layers": 4,
    "model__num_groups": 6,
    "model__group_channels": 12,
    "model__intermediate_size": 160,
    "loss__contrastive__variant": "ref",
}
CASES: dict[str, dict[str, Any]] = {
    "all losses": {},
    "one direction, no crops": {"views__symmetric": False, "views__crops__number": 0},
    "masking alone": {
        "loss__distill__weight": 0.0,
        "loss__patch__weight": 0.0,
        "loss__contrastive__weight": 0.0,
        "views__crops__number": 0,
    },
    "heads of a size": {
        "loss__distill": {"weight": 1.0, "prototypes": 900, "mlp_size": 300, "bottleneck": 64},
        "loss__patch": {"weight": 1.0, "prototypes": 700, "mlp_size": 200, "bottleneck": 64, "pairs": 9},
    },
    "wide keys": {"loss__contrastive": {"weight": 1.0, "embedding": 4096, "mlp_size": 8, "variant": "ref"}},
    "ZeRO-3": {"train__zero_stage": 3},
    "dilated convolutions": {
        "model": {"name": "dilated-conv", "hidden_size": 32, "dilations": [1, 3, 9, 1], "stem_kernel": 3}
    },
}


def counted(cases: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float, int]]:
    """case -> FLOPs of a step counted, by formula, and parameters of the network."""
    found = {}
    for name, values in cases.items():
        config, engine, now, reader = set_up(values)
        batch = reader.batch(0)
        assert now.teacher.module is not engine.network
        with FlopCounterMode(display=False) as counter:
            train_step(engine, now.teacher, [batch.windows], method=method(config), states=now.centres)
        formula = step_flops(method(config), engine.network, length=batch.windows.length)
        found[name] = float(counter.get_total_flops()), formula, pretrained.parameter_count(engine.network)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float, int]]:
    uri = write_dataset(
        tmp_path_factory.mktemp("toy"), {"train": [markov_sequence(30_000, seed=1)]}, block_bp=1024
    )
    cases = {
        name: small_config(uri, **(changes if "model" in changes else {**SIZES, **changes}))
        for name, changes in CASES.items()
    }
    cases["student's keys"] = coupled_config(uri, **SIZES)
    return on_ranks(1, counted, cases)[0]


@pytest.mark.parametrize("name", [*CASES, "student's keys"])
def test_the_formula_is_what_a_step_counts_to(found: Any, name: str) -> None:
    steps, formula, _ = found[name]
    assert formula == pytest.approx(steps, rel=0.005)


def test_partitioned_parameters_count_whole(found: Any) -> None:
    assert found["ZeRO-3"][1:] == found["all losses"][1:]
