"""The model of a step's time: its volumes against the bytes of a real step, its formulas by hand."""

import pytest
import torch

from tests.bench.collective_counts import Counter
from tests.bench.step_model import (
    Cluster,
    Collective,
    Link,
    Step,
    engine_collectives,
    hops,
    seconds_in,
    seconds_on,
    totals,
    wire_bytes,
)
from tests.dist.teachers import make_engine
from tests.ranks import on_ranks
from tests.unit.test_fits import PARAMETERS, WIDTH, Deep
from trainer.core.collectives import Group
from trainer.engine.process_group import init_distributed

CASES = [(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]


def counted() -> dict[tuple[int, str], dict[str, float]]:
    """Bytes by kind of the second step of a student and its teacher, of each stage and precision."""
    found = {}
    counter = Counter()
    with counter.watch():
        init_distributed(torch.device("cpu"))
        for stage, precision in CASES:
            engine = make_engine(Group.of(), stage, precision, 1, Deep(), kept_whole=0)
            teacher = engine.teacher()
            assert teacher.module is not None
            for _ in range(2):
                counter.seen.clear()
                with counter.counting():
                    rows = torch.zeros(2, WIDTH, dtype=engine.settings.compute_dtype)
                    teacher.module(rows)
                    engine.backward(engine.forward(rows).float().square().sum())
                    engine.step(1e-3)
                    teacher.update(0.9)
                    assert teacher.module is not None
            found[stage, precision] = totals(counter.seen)
            engine._deepspeed.destroy()
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_step_exchanges_what_the_model_says(ranks: int) -> None:
    for measured in on_ranks(ranks, counted):
        for (stage, precision), found in measured.items():
            expected = totals(engine_collectives(PARAMETERS, stage=stage, precision=precision))
            if ranks == 1:  # then nothing is gathered, and what is reduced moves nothing
                assert sum(wire_bytes(Collective(*one), 1) for one in found.items()) == 0
                continue
            for kind in found.keys() | expected.keys():
                # Numbers (norms, overflows), padding, and ZeRO-3's order of modules come on top.
                assert found.get(kind, 0) == pytest.approx(expected.get(kind, 0), rel=0.002, abs=4000), (
                    stage,
                    precision,
                    kind,
                )


@pytest.mark.parametrize(
    ("kind", "ranks", "sent", "messages"),
    [
        ("all_reduce", 4, 1500.0, 4),
        ("all_reduce", 2, 1000.0, 2),
        ("all_gather", 4, 750.0, 3),
        ("reduce_scatter", 8, 875.0, 7),
        ("broadcast", 4, 1000.0, 2),
        ("all_reduce", 1, 0.0, 0),
        ("broadcast", 1, 0.0, 0),
    ],
)
def test_what_a_rank_sends(kind: str, ranks: int, sent: float, messages: int) -> None:
    collective = Collective(kind, 1000)
    assert wire_bytes(collective, ranks) == sent
    assert hops(collective, ranks) == messages
    assert seconds_on(Link(100.0, 0.5), collective, ranks) == sent / 100 + 0.5 * messages


def test_a_ring_is_what_its_messages_add_up_to() -> None:
    """Each rank passes on a part of 1/W in each of its hops."""
    for ranks in (2, 3, 8):
        passed = [1000 / ranks for _ in range(ranks - 1)]
        assert wire_bytes(Collective("all_gather", 1000), ranks) == pytest.approx(sum(passed))
        assert wire_bytes(Collective("all_reduce", 1000), ranks) == pytest.approx(2 * sum(passed))


def test_between_nodes_each_rank_carries_its_part() -> None:
    cluster = Cluster(4, Link(100.0, 0.0), Link(10.0, 0.25), 1.0, 1.0)
    gather = Collective("all_gather", 400)
    assert seconds_in(cluster, gather, 4) == 300 / 100
    assert seconds_in(cluster, gather, 8) == 3 + (100 / 2 / 10 + 0.25)


def test_the_largest_part_but_those_that_scale() -> None:
    step = Step(8, {"compute": 5.0, "gather": 1.0, "reduce": 2.0})
    assert (step.seconds, step.largest(but=("compute",))) == (8.0, "reduce")


def test_more_than_reuse_distance_is_gathered_again() -> None:
    assert [one.kind for one in engine_collectives(2 * 10**9, stage=3, precision="bf16")] == [
        "reduce_scatter",
        "all_gather",
        "all_gather",
        "all_gather",
    ]
