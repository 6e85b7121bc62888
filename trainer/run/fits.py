"""Does a config fit? ``python -m cluster doctor --config FILE`` asks this of the memory of its machine.

``python -m trainer.run.fits --config FILE --bytes-per-rank N [--worlds 1,8,64] [key=value ...]`` prints a
line of JSON for each number of ranks: what, state (ok, warning or FAILED), found, advice.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import configs
from cluster.process.command import exit_code
from configs import ConfigError
from trainer.engine.config import Train
from trainer.models import pretrained
from trainer.run import world_size
from trainer.run.config import TrainConfig
from trainer.run.memory import Held, activation_bytes, held, network_on_meta

_GIB = 1 << 30
_USABLE = 0.92  # of the memory: the rest is for the allocator, kernels and libraries
_SMALL_BUCKET = 50_000_000
_Change = dict[str, object]


@dataclass(frozen=True)
class Plan:
    """What is asked about: the network's size, what a window's activations take without and with
    checkpointing, and the ``memory`` of a rank."""

    train: Train
    lanes: int
    parameters: int
    per_window: dict[bool, int]
    memory: int

    @classmethod
    def of(cls, config: TrainConfig, memory: int) -> "Plan":
        per_window = {}
        for checkpointing in (False, True):
            train = config.train.model_copy(update={"activation_checkpointing": checkpointing})
            changed = config.model_copy(update={"train": train})
            network = network_on_meta(changed)
            per_window[checkpointing] = activation_bytes(changed, network, rows=1)
        parameters = pretrained.parameter_count(network)
        return cls(config.train, config.data.lanes, parameters, per_window, memory)

    def held(self, train: Train, ranks: int, *, stage: int | None = None) -> Held:
        rows = min(train.rows_at_once(ranks) or 1, max(1, train.global_batch // ranks))
        activations = self.per_window[train.activation_checkpointing] * rows
        stage = train.zero_stage if stage is None else stage
        return held(self.parameters, train, stage=stage, ranks=ranks, activations=activations)

    def fits(self, train: Train, ranks: int) -> bool:
        return self.held(train, ranks).total <= _USABLE * self.memory


def findings(plan: Plan, worlds: list[int]) -> Iterator[dict[str, str]]:
    """For each number of ranks: what a rank holds, and what to change where that does not fit.

    A number that does not fit is a warning if another one does.
    """
    too_much = "warning" if any(plan.fits(plan.train, ranks) for ranks in worlds) else "FAILED"
    for ranks in worlds:
        now = plan.held(plan.train, ranks)
        stages = ", ".join(
            f"ZeRO-{stage} {plan.held(plan.train, ranks, stage=stage).total / _GIB:.2f}"
            for stage in (1, 2, 3)
            if stage != plan.train.zero_stage
        )
        found = (
            f"{plan.parameters / 1e6:,.1f} M parameters, ZeRO-{plan.train.zero_stage} "
            f"{plan.train.precision}: {now} (with {stages}) of {plan.memory / _GIB:.1f} GiB here"
        )
        state, advice = "ok", ""
        if faults := world_size.faults(plan.train, lanes=plan.lanes, world=ranks):
            state, advice = "warning", "; ".join(faults)
        if not plan.fits(plan.train, ranks):
            state, advice = too_much, advice_for(plan, ranks)
        what = f"fits, {ranks} rank{'s' * (ranks > 1)}"
        yield {"what": what, "state": state, "found": found, "advice": advice}


def advice_for(plan: Plan, ranks: int) -> str:
    """The first change that makes it fit, in the order of what it costs; else what is the least needed."""
    train = plan.train
    rows = min(train.rows_at_once(ranks) or 1, max(1, train.global_batch // ranks))
    fewer: list[_Change] = [{"micro_batch": n} for n in range(rows - 1, 0, -1) if rows % n == 0]
    stages: list[_Change] = [{"zero_stage": stage} for stage in range(train.zero_stage + 1, 4)]
    bucket: _Change = {"deepspeed": _with_bucket(train)}
    in_bf16: _Change = {"precision": "bf16"}
    checkpointing: _Change = {"activation_checkpointing": True}
    least: _Change = {"micro_batch": 1, "zero_stage": 3} | checkpointing | bucket
    changes: list[_Change] = [
        *fewer,
        bucket,
        *stages,
        *(stage | bucket for stage in stages),
        checkpointing,
        in_bf16,
        *(stage | bucket | few for stage in stages for few in fewer),
        least,
        least | in_bf16,
    ]
    for change in changes:
        changed = train.model_copy(update=change)
        if plan.fits(changed, ranks):
            total = plan.held(changed, ranks).total / _GIB
            return f"set {' '.join(_as_keys(change))}: that needs {total:.2f} GiB a rank"
    smallest = train.model_copy(update=least | in_bf16)
    more = next((w for w in (2**k for k in range(1, 13)) if w > ranks and plan.fits(smallest, w)), None)
    keys = " ".join(_as_keys(least | in_bf16))
    if more is None:
        return f"no number of ranks is enough, even with {keys}: make the model smaller"
    return f"use at least {more} ranks with {keys}, or a smaller model"


def _with_bucket(train: Train) -> dict[str, object]:
    zero = {**train.deepspeed.get("zero_optimization", {}), "reduce_bucket_size": _SMALL_BUCKET}
    return {**train.deepspeed, "zero_optimization": zero}


def _as_keys(change: _Change) -> list[str]:
    """A change as overrides of the command line."""
    return [
        f"train.deepspeed.zero_optimization.reduce_bucket_size={_SMALL_BUCKET}"
        if key == "deepspeed"
        else f"train.{key}={str(value).lower()}"
        for key, value in change.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.run.fits", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see configs/train/")
    parser.add_argument("--bytes-per-rank", type=int, required=True, help="memory that a rank may use")
    parser.add_argument("--worlds", default="1,8,64", help="numbers of ranks to ask about")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_args(arguments)

    def run() -> None:
        worlds = args.worlds.split(",")
        if not all(world.isdecimal() and int(world) for world in worlds):
            raise ConfigError(f"--worlds: {args.worlds!r} must be numbers of at least 1, as in 1,8,64")
        config = configs.load(TrainConfig, args.config, args.overrides)
        for line in findings(Plan.of(config, args.bytes_per_rank), [int(world) for world in worlds]):
            print(json.dumps(line), flush=True)

    return exit_code(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
