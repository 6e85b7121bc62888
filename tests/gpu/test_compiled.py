"""Steps compiled by Inductor, and recorded as CUDA graphs, against plain ones on the same GPU.

Not rehearsed: on a CPU tests/dist/test_compiled.py has the same without Inductor.
"""

from typing import Any

import pytest
import torch

from tests.dist.steps import coupled_config, run_steps, small_config
from tests.gpu import where
from tests.gpu.test_gpu import CONVOLUTIONS, write_toy
from tests.ranks import on_ranks
from trainer.engine.compiled import CompiledForward

pytestmark = [
    *where.marks,
    pytest.mark.skipif(where.REHEARSE, reason="Inductor's kernels are for a GPU here"),
]

STEPS = 4
KINDS = {
    "mixer": (small_config, {}),
    "convolutions": (small_config, {"model": CONVOLUTIONS}),
    # Several replays of one graph in a step, whose outputs must all last until its end.
    "coupled, 3 micro-batches": (coupled_config, {"train__micro_batch": 8}),
}
TOLERANCES = {"fp32": 1e-4, "bf16": 0.02}
CASES = [
    ("mixer", "default", "fp32"),
    ("convolutions", "default", "bf16"),
    ("coupled, 3 micro-batches", "reduce-overhead", "bf16"),
    ("mixer", "reduce-overhead", "fp32"),
]


def compiled_and_plain(uri: str, cases: list[tuple[str, str, str]], device: str) -> list[dict[str, Any]]:
    """Losses of each case both ways, and whether both networks were compiled to the end."""
    made: list[CompiledForward] = []
    begin = CompiledForward.__init__

    def kept(self: CompiledForward, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        made.append(self)

    CompiledForward.__init__ = kept  # type: ignore[method-assign]
    found = []
    for kind, mode, precision in cases:
        config, changes = KINDS[kind]
        made.clear()
        runs = [
            run_steps(config(uri, train__precision=precision, train__compile=how, **changes), STEPS, device)
            for how in ("off", mode)
        ]
        plain, fast = (run["losses"] for run in runs)
        found.append({"plain": plain, "fast": fast, "works": [one.works for one in made]})
        torch._dynamo.reset()
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    uri = write_toy(tmp_path_factory.mktemp("toy"))
    return on_ranks(1, compiled_and_plain, uri, CASES, "cuda", timeout_s=600, gpu=True)[0]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[", ".join(case) for case in CASES])
def test_losses_are_those_of_the_plain_step(runs: Any, case: int) -> None:
    found = runs[case]
    assert found["works"] == [True, True]
    for ours, theirs in zip(found["fast"], found["plain"], strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCES[CASES[case][2]])
