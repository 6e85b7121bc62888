"""The kernels of a mixer layer: in Triton's interpreter, compiled for a chip that is not here, as formulas.

tests/gpu/test_mixer_kernels.py has them on a GPU.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import mixers
from tests.mixers import CASES, Case
from trainer.models import mixer_function, mixer_kernels
from trainer.models.chordmixer import ChordMixer, ChordMixerConfig
from trainer.models.mixer_function import TILING, Options, mixer_layer, padded
from trainer.models.mixer_rotation import Rotation

triton = pytest.importorskip("triton", reason="Triton is not made for this platform")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

FINDNA = {"X": 320, "Y": 512, "D": 308, "H": 512, "C": 28}
KERNELS = ("expand", "contract", "unrotate", "slope", "restore")
# Tiles of each descriptor, by the options of the kernel's tiling.
TILES = {
    "expand": {"h": "BM BK", "w": "BN BK", "s": "BM BN", "a": "BM BN"},
    "contract": {"a": "BM BK", "w": "BN BK"},
    "slope": {"du": "BM BK", "w": "BK BN", "s": "BM BN", "ds": "BM BN", "a": "BM BN"},
    "restore": {"ds": "BM BK", "w": "BK BN", "dy": "BM BN", "dh": "BM BN"},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def interpreted() -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mixers"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_the_interpreter_the_kernels_are_the_formulas(case: Case, interpreted: Any) -> None:
    bound = 1e-6 if case.dtype == "float32" else 1e-3
    found = interpreted[case.name]
    assert len(found) == len(mixers.PARTS) - (not case.normed)
    assert {name: error for name, error in found.items() if not error < bound} == {}


@pytest.mark.parametrize("network", mixers.NETWORKS)
def test_in_the_interpreter_a_network_is_its_plain_layers(network: str, interpreted: Any) -> None:
    """Eager and as one graph of torch.compile, with activations kept and computed again."""
    assert interpreted["networks"][network] < 1e-6


def test_weights_that_begin_anywhere_are_read(interpreted: Any) -> None:
    assert interpreted["others"]["misaligned"] == 0


def test_who_reads_within_a_layer_gets_what_it_reads(interpreted: Any) -> None:
    assert interpreted["others"]["read_within"]


def test_a_second_derivative_is_refused(interpreted: Any) -> None:
    assert "once_differentiable" in interpreted["others"]["second_derivative"]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_backward_is_the_gradient(ragged: bool, normed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numerically in fp64, with the formula of each kernel in its place."""
    monkeypatch.setattr(mixer_function, "_Launch", mixers.PlainLaunch)
    monkeypatch.setattr(mixer_kernels, "MULTIPLE", 2)
    case = Case("float64", 2, 5, 3, 2, 4, ragged, normed)
    layer = mixers.layer_of(case)
    rotation = Rotation(layer.x, num_groups=3, group_channels=2, circle_B=layer.circle_B)

    def of(x: torch.Tensor, h: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return mixer_layer(x, h if normed else None, weights, rotation)  # type: ignore[arg-type]

    h = layer.x if layer.h is None else layer.h
    leaves = [of.requires_grad_() for of in (layer.x, h.clone(), layer.w1, layer.b1, layer.w2, layer.b2)]
    assert torch.autograd.gradcheck(of, leaves)
    assert torch.equal(
        mixers.by_kernels(layer, case)[0], of(*leaves).detach()
    )  # what gradcheck saw is what the cases see


def compiled(name: str, options: Options, **sizes: Any) -> dict[str, int]:
    """Registers, bytes of stack, and instructions of interest of a kernel compiled for an H100."""
    kernel, given = getattr(mixer_kernels, name), dict(options)
    launch = {"num_warps": given.pop("num_warps"), "num_stages": given.pop("num_stages")}
    switches = {"RAGGED": False, "KEEP": True, "ADD": True, "FAST": True}
    constants = {
        key: value for key, value in (FINDNA | switches | given | sizes).items() if key in kernel.arg_names
    }
    signature = {}
    for argument in kernel.arg_names:
        if argument.endswith("_desc"):
            rows, columns = (given[side] for side in TILES[name][argument.removesuffix("_desc")].split())
            signature[argument] = f"tensordesc<bf16[{rows}, {columns}]>"
        elif argument.endswith("_ptr"):
            kinds = {"circle_ptr": "*i32", "sums_ptr": "*fp32"}
            signature[argument] = kinds.get(argument, "*bf16")
        else:
            signature[argument] = "constexpr" if argument in constants else "i32"
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if argument.endswith("_ptr")
    }
    made = triton.compile(
        ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", 90, 32), options=launch
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        use, code = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    words = dict(word.split(":") for word in use.split() if re.fullmatch(r"(REG|STACK):\d+", word))
    counts = {word: code.count(word) for word in ("HGMMA", "LDL", "STL", "MUFU.EX2")}
    return (
        counts
        | {"registers": int(words["REG"]), "stack": int(words["STACK"])}
        | {"shared": made.metadata.shared}
    )


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_for_an_h100_nothing_spills(name: str, ragged: bool) -> None:
    options = dict(getattr(TILING, name))
    found = compiled(name, options, RAGGED=ragged)
    assert found["stack"] == found["LDL"] == found["STL"] == 0, found
    # Two programs on a multiprocessor at once, so that one computes while the other reads and writes.
    assert found["registers"] * 32 * options["num_warps"] * 2 <= 1 << 16 and found["shared"] * 2 <= 227 * 1024
    assert (found["HGMMA"] > 0) == (name != "unrotate"), "products are to run on Hopper's tensor cores"


def test_the_exponential_of_the_slope_is_computed_once() -> None:
    """The compiler would lay the activation out otherwise than the slope, and compute both twice."""
    options = dict(TILING.slope)
    entries = options["BM"] * options["BN"] // (32 * options["num_warps"])
    assert compiled("slope", options)["MUFU.EX2"] == entries


def test_entries_that_int32_cannot_number_are_refused() -> None:
    x = torch.empty(1 << 13, 1 << 13, padded(16), device="meta")
    weight = torch.empty(16, 16, device="meta")
    with pytest.raises(
        ValueError, match=r"are more entries than a kernel can number; set a smaller train\.micro_batch"
    ):
        mixer_function._Launch(x, weight, None, 4)


SMALL = {"num_layers": 1, "num_groups": 3, "group_channels": 4, "intermediate_size": 8, "num_summary": 1}


def test_without_a_gpu_triton_is_refused_and_auto_is_plain() -> None:
    codes = torch.zeros(1, 9, dtype=torch.uint8)
    network = ChordMixer(ChordMixerConfig(**SMALL, kernel="triton"))
    with pytest.raises(
        RuntimeError, match=r"model\.kernel is triton, but there is no NVIDIA GPU; set auto or plain"
    ):
        network(codes)
    auto = ChordMixer(ChordMixerConfig(**SMALL))
    assert auto.plain_because(torch.device("cpu"), torch.bfloat16) == "there is no NVIDIA GPU"
    assert auto(codes).letters_BLD.shape == (1, 9, 12)


@pytest.mark.parametrize(
    ("capability", "dtype", "because"),
    [
        ((9, 0), torch.bfloat16, None),
        ((10, 0), torch.float16, None),
        ((9, 0), torch.float32, "weights are in fp32"),
        ((8, 0), torch.bfloat16, "the kernels need an H100 or a later chip, not a Some GPU"),
    ],
)
def test_the_chip_and_the_weights_decide(
    capability: tuple[int, int], dtype: torch.dtype, because: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    network, device = ChordMixer(ChordMixerConfig(**SMALL)), torch.device("cuda")
    assert network.plain_because(device, dtype) == because


def test_layers_that_are_read_from_outside_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixer_kernels, "unusable", lambda device, dtype: None)
    network, device = ChordMixer(ChordMixerConfig(**SMALL)), torch.device("cpu")
    assert network.plain_because(device, torch.bfloat16) is None
    handle = network.activation_modules()[0].register_forward_pre_hook(lambda *_: None)
    assert network.plain_because(device, torch.bfloat16) == (
        "activations or weights within a layer are read from outside, as under ZeRO-3"
    )
    handle.remove()
    assert network.plain_because(device, torch.bfloat16) is None
    plain = ChordMixer(ChordMixerConfig(**SMALL, kernel="plain"))
    assert plain.plain_because(device, torch.bfloat16) == "model.kernel is plain"


def test_without_triton_the_layers_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixer_kernels, "has_triton", False)
    network = ChordMixer(ChordMixerConfig(**SMALL))
    assert network.plain_because(torch.device("cuda"), torch.bfloat16) == "Triton is not installed"


def test_triton_is_refused_where_the_config_says_that_it_cannot_be() -> None:
    config = ChordMixerConfig(**SMALL, kernel="triton")
    assert config.faults(zero_stage=2, precision="bf16") == []
    assert config.faults(zero_stage=3, precision="fp32") == [
        "model.kernel triton needs the whole weights of a layer, which ZeRO-3 gathers one map at a time; use "
        "train.zero_stage 0 to 2, or kernel auto",
        "model.kernel triton is for bf16; set train.precision=bf16, or kernel auto",
    ]
    assert ChordMixerConfig(**SMALL).faults(zero_stage=3, precision="fp32") == []


def test_an_export_says_nothing_of_the_kernel() -> None:
    config = ChordMixerConfig(**SMALL, kernel="plain")
    assert "kernel" not in config.exported()
    exported = config.exported() | {"model_type": "findna"}
    assert ChordMixerConfig.from_export(exported) == ChordMixerConfig(**SMALL)
