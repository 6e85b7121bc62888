"""Which kernels a training computes by: what is refused, what is said, and what ZeRO-3 does to them."""

from typing import Any

import pytest
import torch

from configs import ConfigError
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import set_up, small_config
from tests.ranks import on_ranks
from trainer.models import mixer_kernels
from trainer.models.chordmixer import ChordMixer, MixerLayer
from trainer.run.beginning import check_kernels

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    contigs = {"train": [markov_sequence(20_000, seed=1)]}
    return write_dataset(tmp_path_factory.mktemp("toy"), contigs, block_bp=1024, soft=True)


def said(uri: str, stage: int, kernel: str, chip: bool) -> str:
    """What a run says of its kernels, or why it is refused; ``chip``: as if the GPU for them were here."""
    with pytest.MonkeyPatch.context() as patch:
        if chip:
            patch.setattr(mixer_kernels, "unusable", lambda device, dtype: None)
        changes: dict[str, Any] = {"train__zero_stage": stage, "train__precision": "bf16"}
        try:
            engine = set_up(small_config(uri, model__kernel=kernel, **changes))[1]
        except ValueError as fault:
            return f"refused: {str(fault).splitlines()[1].split(' [')[0].strip()}"
        backbone = engine.network.backbone
        assert isinstance(backbone, ChordMixer)
        read = [layer.is_read() for layer in backbone.layers if isinstance(layer, MixerLayer)]
        assert read == [stage == 3] * 2, "ZeRO-3 alone gathers weights by hooks"
        if chip and kernel == "auto":
            on_a_gpu = backbone.computed_by(torch.device("cuda"), torch.bfloat16)
            return on_a_gpu
        try:
            return check_kernels(engine)
        except ConfigError as fault:
            return f"refused: {fault}"


def all_said(uri: str) -> list[str]:
    cases = [
        (1, "auto", False),
        (1, "triton", False),
        (1, "auto", True),
        (3, "auto", True),
        (3, "triton", True),
    ]
    return [said(uri, *case) for case in cases]


def test_what_computes_the_layers_is_said_and_what_cannot_be_is_refused(uri: str) -> None:
    read = "activations or weights within a layer are read from outside, as under ZeRO-3"
    assert on_ranks(1, all_said, uri, timeout_s=200)[0] == [
        "",
        "refused: model.kernel is triton, but there is no NVIDIA GPU; set auto or plain",
        "the mixer's layers run by Triton kernels",
        f"the mixer's layers run by plain operations: {read}",
        "refused: Value error, model.kernel triton needs the whole weights of a layer, which ZeRO-3 gathers "
        "one map at a time; use train.zero_stage 0 to 2, or kernel auto",
    ]
