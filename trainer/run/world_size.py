"""On how many processes a run can train, and how a batch is divided among them.

``python -m trainer.run.world_size --at-most N --config FILE [key=value ...]`` prints one number: the largest
number of processes up to N that train.global_batch, data.lanes and train.micro_batch allow.
"""

import argparse
import sys

import configs
from cluster.process.command import exit_code
from configs import ConfigError
from trainer.engine.config import Train
from trainer.run.config import TrainConfig


def faults(train: Train, *, lanes: int, world: int) -> list[str]:
    """What prevents a run on ``world`` processes: a line each with the key, the value and what works."""
    batch, rows = train.global_batch, train.rows_at_once(world)
    if lanes % world or batch % world:
        sizes = [w for w in range(1, 1025) if lanes % w == 0 and batch % w == 0]
        return [
            f"train.global_batch {batch} and data.lanes {lanes} must both be divisible by the {world} "
            f"processes; numbers of processes that work: {', '.join(map(str, sizes))}"
        ]
    if batch % (world * rows):
        return [
            f"train.micro_batch: {rows} times {world} processes does not divide train.global_batch {batch}"
        ]
    if train.precision == "bf16" and train.zero_stage == 0 and train.accumulation(world) > 1:
        return [
            "train.zero_stage: DeepSpeed accumulates bf16 gradients in bf16 at stage 0; use stage 1 or 2, "
            f"or train.micro_batch {batch // world}"
        ]
    return []


def largest(train: Train, *, lanes: int, at_most: int) -> int:
    """The largest number of processes up to ``at_most`` that a run can use. ConfigError if there is none."""
    found: list[str] = []
    for world in range(at_most, 0, -1):
        found = faults(train, lanes=lanes, world=world)
        if not found:
            return world
    raise ConfigError(f"no number of processes up to {at_most} fits: " + "; ".join(found))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.run.world_size", description=__doc__)
    parser.add_argument(
        "--at-most", type=int, required=True, help="processes that there is room for, at least 1"
    )
    parser.add_argument("--config", required=True, help="YAML file, see configs/train/")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of the config, dotted keys"
    )
    args = parser.parse_args(arguments)

    def run() -> None:
        if args.at_most < 1:
            raise ConfigError(f"--at-most: {args.at_most} must be at least 1")
        config = configs.load(TrainConfig, args.config, args.overrides)
        config.refuse_lost()  # the supervisor asks here before it starts a rank
        print(largest(config.train, lanes=config.data.lanes, at_most=args.at_most))

    return exit_code(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
