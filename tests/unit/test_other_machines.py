"""What docs/training.md promises of bits and of values, on processors that this one can play.

A setting takes instructions away from torch, MKL and oneDNN, which look at it once, when they are loaded: so
each is a child process of its own, which checks everything there with 1 to 4 threads. docs/training.md has
the promises.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.core import random
from trainer.core.collectives import Group, Pending
from trainer.core.tiles import aligned
from trainer.data.leaves import Leaf
from trainer.data.locus import loci
from trainer.data.region_sampling import RegionSampler
from trainer.data.regions import Regions
from trainer.data.sampling import Phase, Sampler, SamplingPlan
from trainer.data.windows import Windows
from trainer.engine.ema import ShardedEMA
from trainer.engine.partition import FlatGroup
from trainer.inference.embed.vectors import Reading, WindowBatch, read_windows
from trainer.inference.sequences import EncodedSequences
from trainer.losses.contrastive import EmbeddingHead
from trainer.losses.dino import SummaryHead
from trainer.losses.infonce import Contrast, SymmetricContrast, info_nce, symmetric_info_nce
from trainer.losses.koleo import Spread, koleo
from trainer.losses.patch import LetterHead, Letters
from trainer.losses.ring_infonce import (
    RingContrast,
    RingSymmetricContrast,
    ring_info_nce,
    ring_symmetric_info_nce,
)
from trainer.losses.sinkhorn import Assignment, sinkhorn
from trainer.losses.vicreg import Expanded, ExpanderHead, vicreg
from trainer.models.chordmixer import ChordMixer, ChordMixerConfig
from trainer.models.dilated_conv import DilatedConv, DilatedConvConfig
from trainer.models.network import Crops, Network, Outputs
from trainer.views.masking import input_noise, mask
from trainer.views.view import View, make_view

pytestmark = pytest.mark.timeout(300)  # all children run before the first test

# What a processor lacks, by what is taken away. The third is a Cascade Lake Xeon: AVX-512 without bf16 and
# AMX.
SETTINGS = {
    "as it is": {},
    "AVX-512, no bf16": {"MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE4.2": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
    del SETTINGS["AVX2"]  # torch would believe it, and die of the first instruction
THREADS = (1, 2, 3, 4)
ALONE = Group(0, 1)
SCALE = torch.tensor(30.0)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_views(rows: int, features: int) -> tuple[Tensor, Tensor]:
    first_BE = normal(rows, features)
    return F.normalize(first_BE, dim=1), F.normalize(first_BE + normal(rows, features, seed=1), dim=1)


def unlike(ours: Tensor, theirs: Tensor) -> int:
    """Entries whose bits differ."""
    return int((ours.contiguous().view(torch.int32) != theirs.contiguous().view(torch.int32)).sum())


def of_each(values: Sequence[Tensor]) -> int:
    """Entries whose bits are not those of the first."""
    return sum(unlike(value, values[0]) for value in values[1:])


def gradients(form: str, first_BE: Tensor, second_BE: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, gradients of the views) of all rows on one rank."""
    rows, views = len(first_BE), [first_BE.clone().requires_grad_(), second_BE.clone().requires_grad_()]
    loss = {
        "teacher": lambda: info_nce(Contrast(views[0], second_BE, torch.arange(rows), SCALE, rows)),
        "teacher ring": lambda: ring_info_nce(RingContrast(views[0], second_BE, SCALE, ALONE, rows)),
        "two views": lambda: symmetric_info_nce(
            SymmetricContrast(*views, first_BE, second_BE, 0, SCALE, ALONE, rows)
        ),
        "two views ring": lambda: ring_symmetric_info_nce(RingSymmetricContrast(*views, SCALE, ALONE, rows)),
    }[form]()
    return loss.detach(), torch.cat(
        torch.autograd.grad(loss, views[: 1 if form.startswith("teacher") else 2])
    )


def contrastive_by_threads() -> int:
    wrong = 0
    for form in ("teacher", "teacher ring", "two views", "two views ring"):
        for rows, features in ((7, 5), (156, 33), (3, 1000), (1100, 48)):
            found = []
            for number in THREADS:
                with threads(number):
                    found.append(gradients(form, *two_views(rows, features))[1])
            wrong += of_each(found)
    return wrong


def contrastive_by_rows() -> int:
    """A row's gradient whatever other rows are in the call, wherever it stands, and wherever the keys
    begin."""
    wrong = 0
    for keys, features in ((120, 33), (700, 64)):
        query_BE, keys_GE = two_views(keys, features)

        def gradient(rows: Tensor, keys_GE: Tensor = keys_GE, query_BE: Tensor = query_BE) -> Tensor:
            query = query_BE[rows].requires_grad_()
            (found,) = torch.autograd.grad(
                info_nce(Contrast(query, keys_GE, rows, SCALE, len(keys_GE))), query
            )
            return found

        every = torch.arange(keys)
        whole = gradient(every)
        shuffled = torch.randperm(keys, generator=torch.Generator().manual_seed(0))
        wrong += unlike(gradient(shuffled), whole[shuffled])
        for ranks in (2, 4, 7):
            wrong += unlike(torch.cat([gradient(rows) for rows in every.chunk(ranks)]), whole)
        odd_GE = torch.empty(keys_GE.numel() + 3)[3:].view(keys_GE.shape).copy_(keys_GE)
        wrong += unlike(gradient(every, odd_GE), whole)
        assert aligned(odd_GE).data_ptr() % 64 == 0 and aligned(odd_GE.T).is_contiguous()
        assert aligned(whole).data_ptr() == whole.data_ptr(), "a copy without need"
    return wrong


class _NoWeights:
    def write(self, shards: Sequence[Tensor]) -> Pending:
        return Pending()


def teacher_by_partition() -> int:
    entries, wrong = 12 * 9001, 0
    before, after = normal(entries), normal(entries, seed=1)
    for momentum in (0.996, 0.4, 1 / 3):
        found = []
        for ranks in THREADS:
            shards = []
            for rank in range(ranks):
                size = entries // ranks
                master = before[rank * size :][:size].clone()
                group = FlatGroup(
                    entries, {"all": (0, torch.Size([entries]))}, [(0, master[:5]), (5, master[5:])]
                )
                teacher = ShardedEMA(
                    nn.Module(), nn.Module(), [group], _NoWeights(), group=Group(rank, ranks)
                )
                master.copy_(after[rank * size :][:size])
                with threads(5 - ranks):
                    teacher.update(momentum)
                shards += teacher.shards
            found.append(torch.cat(shards))
        wrong += of_each(found)
    return wrong


def adamw_by_partition() -> int:
    entries = 12 * 9001
    start, gradient = normal(entries), normal(entries, seed=1)
    found = []
    for ranks in THREADS:
        shards = [nn.Parameter(shard.clone()) for shard in start.chunk(ranks)]
        # As trainer.engine.engine has it on a CPU: fused rounds by an entry's place.
        optimiser = torch.optim.AdamW(shards, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=False)
        with threads(5 - ranks):
            for step in range(1, 4):
                for shard, part in zip(shards, (gradient / step).chunk(ranks), strict=True):
                    shard.grad = part.clone()
                optimiser.step()
        found.append(torch.cat([shard.detach() for shard in shards]))
    return of_each(found)


def noise_by_rows() -> int:
    key_B = random.fold(3, torch.arange(700))
    found = []
    for ranks in THREADS:
        with threads(5 - ranks):
            found.append(torch.cat([random.normals(part, "noise", 301) for part in key_B.chunk(ranks)]))
    return of_each(found)


def assignment() -> Assignment:
    bottleneck_NC, prototypes_KC = (F.normalize(normal(n, 24, seed=n), dim=1) for n in (600, 301))
    return Assignment(bottleneck_NC, prototypes_KC, None, 0.04, block=128)


def sinkhorn_by_rows() -> int:
    wrong = 0
    for number in (1, 4):
        with threads(number):
            whole_NK = sinkhorn(assignment())
            for begin, end in ((0, 300), (300, 600), (77, 451)):
                wrong += unlike(sinkhorn(assignment(), slice(begin, end)), whole_NK[begin:end])
    return wrong


def network() -> Network:
    torch.manual_seed(0)
    heads: dict[str, nn.Module] = {}
    for name, kind in (("distill", SummaryHead), ("patch", LetterHead)):
        heads[name] = kind(80, mlp_size=48, bottleneck=24, prototypes=300)
    heads["contrastive"] = EmbeddingHead(
        80, mlp_size=48, embedding=32, scale=10.0, max_scale=100.0, learnable=True
    )
    heads["vicreg"] = ExpanderHead(80, mlp_size=48, embedding=64)
    return Network(
        ChordMixer(
            ChordMixerConfig(
                num_layers=2,
                num_groups=5,
                group_channels=16,
                intermediate_size=96,
                num_summary=3,
                norm="layer",
            )
        ),
        heads=heads,
    )


def pooled() -> Tensor:
    """600 rows of which half have one neighbour."""
    rows_GD = normal(600, 80)
    rows_GD[300:] = rows_GD[:1] + 0.01 * rows_GD[300:]
    return rows_GD


def step(net: Network) -> tuple[Tensor, Tensor]:
    """(losses, gradients) of a forward and a backward through all heads."""
    generator = torch.Generator().manual_seed(0)
    codes_BL = torch.randint(0, 4, (32, 90), generator=generator, dtype=torch.uint8)
    length_B = torch.randint(50, 91, (32,), generator=generator)
    letters_BN = torch.randint(0, 50, (32, 20), generator=generator)
    outputs: Outputs = net(
        codes_BL,
        length_B=length_B,
        noise_BLC=normal(32, 90, 4),
        requests={name: Letters(letters_BN) if name == "patch" else None for name in net.heads},
        crops=Crops(codes_BL[:, :30].contiguous(), length_B.clamp(max=30), ("distill",)),
    )
    leaf = pooled().requires_grad_()
    heads = outputs.heads
    expanded_BE, (embedding_BE, scale) = heads["vicreg"].expanded_BE, heads["contrastive"]
    losses = torch.stack(
        [
            F.cross_entropy(outputs.logits_BLV[codes_BL < 2], codes_BL[codes_BL < 2].long()),
            heads["distill"].cosines.square().mean(),
            heads["patch"].cosines.square().mean(),
            outputs.crops["distill"].cosines.square().mean(),
            info_nce(Contrast(embedding_BE, embedding_BE.detach().flip(0), torch.arange(32), scale, 32)),
            koleo(Spread(leaf, leaf.detach(), 0, 1)),
            vicreg(Expanded(expanded_BE, expanded_BE.detach(), 0.9 * expanded_BE.detach(), 0, 1)),
        ]
    )
    found = torch.autograd.grad(losses.sum(), [*net.parameters(), leaf], allow_unused=True)
    return losses.detach(), torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def step_again() -> int:
    """What going on from a checkpoint needs: the same step once more, with as many threads."""
    wrong, net = 0, network()
    for number in (1, 4):
        with threads(number):
            steps = [step(net) for _ in range(4)]
        wrong += of_each([losses for losses, _ in steps]) + of_each([found for _, found in steps])
    return wrong


def vectors_by_batch() -> int:
    """Embeddings of sequences, whatever is read beside them, in any order, by any number of threads."""
    wrong, rng = 0, np.random.default_rng(0)
    codes = [rng.integers(0, 4, int(n)).astype(np.uint8) for n in (*rng.integers(1, 700, 30), 101, 101, 2500)]
    for backbone in (network().backbone, DilatedConv(DilatedConvConfig(hidden_size=24))):
        net = Network(backbone, heads={}).eval()

        def read(chosen: Sequence[int], number: int, net: Network = net) -> Tensor:
            rows = EncodedSequences.from_codes([codes[i] for i in chosen])
            with threads(number):
                return torch.from_numpy(read_windows(net, WindowBatch.whole(rows), Reading("mean")))

        together = read(range(len(codes)), 1)
        order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(1)).tolist()
        wrong += unlike(read(order, 3), together[order])
        wrong += sum(unlike(read([i], 2), together[[i]]) for i in (0, 7, 30, 32))
    return wrong


BITS: dict[str, Callable[[], int]] = {
    "embeddings, in any batch and by any threads": vectors_by_batch,
    "contrastive gradients, any number of threads": contrastive_by_threads,
    "contrastive gradients of a row, whatever rows are beside it": contrastive_by_rows,
    "the teacher, at any partition": teacher_by_partition,
    "AdamW, at any partition": adamw_by_partition,
    "noise, on any number of ranks": noise_by_rows,
    "Sinkhorn, whichever rows are asked for": sinkhorn_by_rows,
    "a step, done again": step_again,
}


def windows() -> Windows:
    codes_BS = random.letters(random.words(random.fold(1, torch.arange(64)), "genome", 10))
    place_B3 = torch.stack([torch.arange(64), torch.full((64,), 100), torch.full((64,), 300)], 1)
    return Windows(
        codes_BS,
        torch.zeros(64, dtype=torch.int64),
        torch.full((64,), 320),
        random.fold(5, torch.arange(64)),
        place_B3,
        60,
    )


def view(source: Windows) -> View:
    return make_view(
        source,
        name="v",
        operations={"deletion": 9, "insertion": 9, "shift": 9},
        substitution=0.1,
        reverse_complement=0.5,
    )


def region_sampler() -> RegionSampler:
    """Of many regions with scores, one of which is cut at the edge of a block."""
    bp_P = np.array([100, 40, 60, 3, 300, 17] * 20)
    block_P = np.repeat([0, 1, 1, 1, 2, 2], 20)
    start_P = np.arange(len(bp_P)) % 20 * 30
    region_P, before_P, of_P = np.arange(len(bp_P)), np.zeros_like(bp_P), bp_P.copy()
    region_P[[19, 20]], before_P[20] = 19, bp_P[19]
    of_P[[19, 20]] = bp_P[[19, 20]].sum()
    score_P = 0.1 + region_P % 7
    regions = Regions(block_P, start_P, bp_P, region_P, before_P, of_P, score_P)
    plan = SamplingPlan([1.0], [Phase(0, 64)], seed=3, flank=10, lanes=2, global_batch=2)
    leaf = Leaf(1, 0, 0, Fraction(1), regions)
    return RegionSampler(np.array([900, 1300, 950]), np.ones(3), leaf, plan=plan, phase=0)


def digests() -> dict[str, str]:
    """Of what is integers, and must be the same on every machine."""

    def digest(*arrays: Any) -> str:
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()

    source = windows()
    seen = view(source)
    masked = mask(seen, source, name="m", rate=0.3, mask_share=0.8, random_share=0.1)
    plan = SamplingPlan([1.0], [Phase(0, 64)], seed=3, flank=10, lanes=2, global_batch=2)
    sampler = Sampler(np.array([700, 1300, 250]), np.ones(3), plan=plan, dataset=0, phase=0)
    return {
        "views": digest(seen.codes_BL, seen.source_BL, seen.reversed_B),
        "masks": digest(masked.codes_BL, masked.target_BL),
        "places": digest(loci(source).place_N4),
        "order": digest(*(sampler.open_set(lane, 0).samples_M5 for lane in range(2))),
        "order of regions": digest(*(region_sampler().open_set(lane, 0).samples_M5 for lane in range(2))),
    }


def errors() -> dict[str, float]:
    """Largest errors, each over what it may be."""
    found, net = {}, network().eval()
    first_BE, second_BE = two_views(400, 64)
    exact = [first_BE.double().requires_grad_(), second_BE.double().requires_grad_()]
    logits_BB = 30 * exact[0] @ exact[1].T
    own_B = torch.arange(400)
    wanted = (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
    loss, got = gradients("two views", first_BE, second_BE)
    reference = torch.cat(torch.autograd.grad(wanted, exact))
    found["contrastive loss, against float64"] = abs(loss.item() / wanted.item() - 1) / 5e-6
    found["contrastive gradients, against float64"] = (
        float((got - reference).norm() / reference.norm()) / 5e-6
    )
    by_threads, balanced = [], []
    for number in THREADS:
        with threads(number):
            by_threads.append(step(net)[0])
            balanced.append(sinkhorn(assignment()))
    found["losses, any number of threads"] = (
        max(float((a / by_threads[0] - 1).abs().max()) for a in by_threads) / 1e-5
    )
    found["Sinkhorn, any number of threads"] = (
        max(float((a - balanced[0]).abs().max()) for a in balanced) / 5e-6
    )
    codes_BL = torch.randint(0, 4, (6, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    length_B = torch.tensor([40, 23, 31, 40, 7, 12])
    with torch.no_grad():
        together = net(codes_BL, length_B=length_B)
        separate = [net(codes_BL[row : row + 1, :length]) for row, length in enumerate(length_B.tolist())]
    for row, alone in enumerate(separate):
        length = int(length_B[row])
        for ours, theirs in (
            (together.logits_BLV[row, :length], alone.logits_BLV[0]),
            (together.embedding[row], alone.embedding[0]),
        ):
            error = float(((ours - theirs).abs() / (theirs.abs() + 0.1)).max()) / 1e-5
            found["a row among others and padding"] = max(
                error, found.get("a row among others and padding", 0)
            )
    return found


def numbers() -> dict[str, list[float]]:
    """To be compared between machines, within 1e-5 of each other (noise: within 1e-5 of its deviation)."""
    source = windows()
    return {
        "losses": step(network())[0].tolist(),
        "noise": input_noise(view(source), source, name="v", std=1.0).flatten()[:99].tolist(),
    }


def measure() -> dict[str, Any]:
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "digests": digests(),
        "errors": errors(),
        "bits": {name: check() for name, check in BITS.items()},
        "numbers": numbers(),
    }


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """setting -> what its child measured; all of them at the same time."""
    hidden = {name for changes in SETTINGS.values() for name in changes}
    own = {name: value for name, value in os.environ.items() if name not in hidden}
    # Threads that wait must not spin: there are more than cores.
    children = {
        name: subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=own | changes | {"OMP_WAIT_POLICY": "passive"},
        )
        for name, changes in SETTINGS.items()
    }
    try:
        answers = {name: child.communicate() for name, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    for name, child in children.items():
        assert child.returncode == 0, f"{name}: {answers[name][1][-2000:]}"
    return {name: json.loads(out) for name, (out, _) in answers.items()}


def test_a_setting_takes_instructions_away(found: dict[str, Any]) -> None:
    seen = {name: result["capability"] for name, result in found.items()}
    assert seen["SSE4.2"] == "DEFAULT" and seen.get("AVX2", "AVX2") == "AVX2", seen


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("promise", BITS)
def test_bits_are_the_same(found: dict[str, Any], setting: str, promise: str) -> None:
    assert found[setting]["bits"][promise] == 0, "entries whose bits differ"


@pytest.mark.parametrize("setting", SETTINGS)
def test_values_are_as_exact_as_promised(found: dict[str, Any], setting: str) -> None:
    assert all(error <= 1 for error in found[setting]["errors"].values()), found[setting]["errors"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_samples_views_and_masks_are_the_same_bits_on_every_machine(
    found: dict[str, Any], setting: str
) -> None:
    assert found[setting]["digests"] == found["as it is"]["digests"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_and_noise_of_machines_agree(found: dict[str, Any], setting: str) -> None:
    for name, values in found["as it is"]["numbers"].items():
        assert all(math.isfinite(value) for value in values)
        assert found[setting]["numbers"][name] == pytest.approx(values, rel=1e-5, abs=1e-5), name


if __name__ == "__main__":
    print(json.dumps(measure()))
