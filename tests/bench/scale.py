"""How a step's time grows with the ranks: the model of step_model.py, tested on gloo ranks here, printed for
GPUs.

Here: a step of one rank, its update, and the links of 2 and of 4 ranks are measured; the model predicts the
step of 2 and of 4. They share the machine's cores and memory, so the computing is predicted slower by as much
as a product of matrices is when all ranks multiply at once.

For GPUs everything is by the model, on the assumptions of ``H100``: no step was measured. The rows'
reference is the step of one GPU with as many windows; the ratio is the efficiency of weak scaling.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

import configs
from cluster.process import compat
from tests.bench.collective_counts import Counter
from tests.bench.harness import Row
from tests.bench.step_model import (
    Cluster,
    Collective,
    Link,
    Step,
    engine_collectives,
    hops,
    seconds_in,
    seconds_on,
    wire_bytes,
)
from tests.large import ONE_BILLION
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.distill.method import Method
from trainer.distill.step import train_step
from trainer.engine.process_group import init_distributed
from trainer.losses.prototypes import PrototypeLoss
from trainer.models import pretrained
from trainer.run import train_state
from trainer.run.config import TrainConfig
from trainer.run.flops import step_flops
from trainer.run.memory import network_on_meta, random_windows
from trainer.run.train import build

PRESETS = Path(__file__).parents[2] / "configs/train"
ROWS = 4  # of a rank, in the steps that are measured
SMALL = [
    "data.length=250",
    "train.zero_stage=1",
    "train.precision=fp32",
    "data.lanes=48",
    "model.num_layers=6",
]
TURNS = 9
SIZE = 16 << 20  # entries of the long collective

# Assumptions, not measurements: NVLink of an H100 (450 GB/s in each direction) and InfiniBand of 400 Gb/s for
# each GPU, both at 80 to 90 %; hops as nccl has them; 60 % of the measured random product of 775 TFLOP/s (the
# aim, not what is reached today); copies at the 3.0 TB/s that were measured.
H100 = Cluster(
    per_node=8,
    inside=Link(370e9, 3e-6),
    between=Link(45e9, 6e-6),
    flops_per_s=465e12,
    memory_bytes_per_s=3.0e12,
)
FP32_FLOPS = 50e12  # without TF32, measured: what Sinkhorn computes in
GPUS = (8, 64, 1024)


def rows() -> list[Row]:
    return [*here(), *on_gpus()]


def here() -> list[Row]:
    """Predicted and measured steps of 2 and 4 ranks, ZeRO-1 in fp32, 4 windows of 250 letters a rank."""
    alone = on_ranks(1, measured, 1)[0]
    found = []
    for world in (2, 4):
        answers = on_ranks(world, measured, world)
        slowest = {name: max(answer[name] for answer in answers) for name in answers[0]}
        step = predicted(alone, slowest, world)
        name = f"step on {world} gloo ranks, of which exchange {1e3 * step.parts['exchange']:.0f} ms"
        ours, model = 1e3 * slowest["step"], 1e3 * step.seconds
        found.append(Row(name, ours, model, ours / model, "ms", "0.7-1.4", "the model, from 1 rank"))
    return found


def predicted(alone: dict[str, float], links: dict[str, float], world: int) -> Step:
    """``alone``: of one rank. ``links``: of ``world`` ranks, of which the step's own time is not used."""
    slower = links["product"] / alone["product"]
    link = Link(links["bytes_per_s"], links["hop_s"])
    exchanged = [
        *engine_collectives(int(alone["parameters"]), stage=1, precision="fp32"),
        Collective("all_gather", alone["payload"] * world),
    ]
    exchange = sum(seconds_on(link, collective, world) for collective in exchanged)
    compute = alone["step"] - alone["update"]
    return Step(
        world, {"compute": compute * slower, "update": alone["update"] / world * slower, "exchange": exchange}
    )


def preset(name: str, *changes: str) -> TrainConfig:
    return configs.load(TrainConfig, PRESETS / f"{name}.yaml", changes)


def measured(world: int) -> dict[str, float]:
    """On each rank: seconds of a step, of its update, of a product; the link; bytes that losses exchange."""
    counter = Counter()
    with counter.watch():
        init_distributed(torch.device("cpu"))
        torch.set_num_threads(1)
        config, group = preset("findna", *SMALL, f"train.global_batch={ROWS * world}"), Group.of()
        engine, teacher = build(config, device=torch.device("cpu"), group=group)
        method = Method(config.views, config.loss.terms(), config.train.global_batch, group)
        state = train_state.first_state(config, teacher, device=engine.device)
        windows = random_windows(config, ROWS)
        ids_B4 = torch.zeros(ROWS, 4, dtype=torch.int64)
        update: list[float] = []

        def step() -> None:
            result = train_step(engine, teacher, [windows], method=method, states=state.centres)
            start = time.perf_counter()
            train_state.apply(state, engine, result, train=config.train, ema=config.ema, ids_B4=ids_B4)
            assert teacher.module is not None  # waits
            update.append(time.perf_counter() - start)

        step()
        with counter.counting():
            step()
        seconds = _median(step)
        matrix = torch.randn(1024, 512)
        product = _median(lambda: [matrix @ matrix.T for _ in range(10)])
        link = _link(world)
    payload = sum(one.bytes for one in counter.seen if one.dtype == "uint8") / world
    return {
        "step": seconds,
        "update": statistics.median(update[2:]),
        "product": product,
        "bytes_per_s": link.bytes_per_s,
        "hop_s": link.hop_s,
        "payload": payload,
        "parameters": float(pretrained.parameter_count(engine.network)),
    }


def _link(world: int) -> Link:
    """From a short and a long all-gather."""
    if world == 1:
        return Link(1.0, 0.0)
    times = []
    for entries in (world, SIZE):
        whole = torch.zeros(entries)
        shard = torch.zeros(entries // world)
        times.append(_median(lambda whole=whole, shard=shard: compat.all_gather(whole, shard)))  # type: ignore[misc]
    hop_s = times[0] / hops(Collective("all_gather", 0), world)
    wire = wire_bytes(Collective("all_gather", 4 * SIZE), world)
    return Link(wire / max(times[1] - times[0], 1e-9), hop_s)


def _median(function: Callable[[], object]) -> float:
    """Seconds of a call; all ranks begin at once."""
    times = []
    for turn in range(TURNS + 1):
        dist.barrier()
        start = time.perf_counter()
        function()
        if turn:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def on_gpus() -> list[Row]:
    """Weak scaling by the model: windows of a GPU as on one."""
    found = []
    for name, title, windows, changes in (
        ("findna", "findna, 64 windows a GPU", 64, ()),
        ("findna-plus", "findna-plus, 48 windows a GPU", 48, ()),
        ("findna", "1 B parameters, 24 windows a GPU", 24, ONE_BILLION),
    ):
        config = preset(name, *changes, "train.precision=bf16")
        payload = payload_of_a_window(name)
        one = on_gpu(config, windows, 1, payload)
        for ranks in GPUS:
            step = on_gpu(config, windows, ranks, payload)
            lost = step.largest(but=("compute", "update"))
            told = f"1 GPU; most is lost to {lost}, {1e3 * step.parts[lost]:.3g} ms"
            row = f"{title}, {ranks:,} GPUs (model)"
            found.append(
                Row(row, 1e3 * step.seconds, 1e3 * one.seconds, one.seconds / step.seconds, "ms", "–", told)
            )
    return found


def on_gpu(config: TrainConfig, windows: int, ranks: int, payload: float) -> Step:
    """A step of ``windows`` on each of ``ranks`` GPUs; nothing overlaps, as today. ``payload``: bytes that a
    window brings to the step's one gather."""
    network, stage = network_on_meta(config), config.train.zero_stage
    parameters, length = pretrained.parameter_count(network), config.data.last_length

    def flops(world: int) -> float:
        method = Method(config.views, config.loss.terms(), windows * world, Group(0, world))
        return step_flops(method, network, length=length)

    own = flops(1)
    engine = engine_collectives(parameters, stage=stage, precision=config.train.precision)
    gather = Collective("all_gather", payload * windows * ranks)
    parts = {
        "compute": own / H100.flops_per_s,
        "update": parameters * 40 / ranks / H100.memory_bytes_per_s,  # reads and writes of AdamW and average
        "logits against the whole batch": (flops(ranks) - own) / H100.flops_per_s,
        "Sinkhorn over the whole batch, on every GPU": sinkhorn_flops(config, windows * ranks) / FP32_FLOPS,
        "the losses' one gather": seconds_in(H100, gather, ranks),
    }
    for kind, name in (
        ("all_reduce", "the all-reduce of fp32 gradients, not overlapped"),
        ("reduce_scatter", "the reduce-scatter of fp32 gradients, not overlapped"),
        ("all_gather", "gathers of weights, student's and teacher's"),
    ):
        of_kind = [one for one in engine if one.kind == kind]
        if of_kind:
            parts[name] = sum(seconds_in(H100, one, ranks) for one in of_kind)
    return Step(ranks, parts)


def sinkhorn_flops(config: TrainConfig, global_batch: int) -> float:
    """Cosines of all rows of the global batch with all prototypes, made again in each iteration."""
    total = 0.0
    network = network_on_meta(config)
    for term in config.loss.terms():
        if isinstance(term, PrototypeLoss) and term.split:
            rows = global_batch * (2 if config.views.symmetric else 1)
            rows *= getattr(term.config, "pairs", None) or term.positions(network)
            sizes = term.config
            total += 2.0 * rows * sizes.prototypes * sizes.bottleneck * sizes.sinkhorn_iterations
    return total


def payload_of_a_window(name: str) -> float:
    """Bytes that a window brings to the gather: counted in steps of one layer, 2 and 4 windows a rank."""
    few, many = (max(on_ranks(2, gathered, name, windows)) for windows in (2, 4))
    return (many - few) / 2


def gathered(name: str, windows: int) -> float:
    """Bytes of this rank in the packed gather."""
    counter = Counter()
    with counter.watch():
        init_distributed(torch.device("cpu"))
        changes = ["model.num_layers=1", "data.length=256", "train.precision=fp32", "train.zero_stage=1"]
        changes += ["views.crops.length=64"] if name == "findna-plus" else []
        config = preset(name, *changes, f"train.global_batch={2 * windows}")
        engine, teacher = build(config, device=torch.device("cpu"), group=Group.of())
        method = Method(config.views, config.loss.terms(), config.train.global_batch, Group.of())
        state = train_state.first_state(config, teacher, device=engine.device)
        with counter.counting():
            train_step(
                engine, teacher, [random_windows(config, windows)], method=method, states=state.centres
            )
    return sum(one.bytes for one in counter.seen if one.dtype == "uint8") / 2
