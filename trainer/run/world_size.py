"""``python -m trainer.run.world_size --at-most N --config FILE [key=value ...]``: the largest number of
processes that fits.

It prints one number: of those up to N, the largest that train.global_batch, data.lanes and train.micro_batch
allow.
"""

import argparse
import sys

import configs
from cluster.process.command import exit_code
from configs import ConfigError
from trainer.run.config import TrainConfig


def largest(config: TrainConfig, at_most: int) -> int:
    """The largest number of processes up to ``at_most`` that ``config`` can be run with. ConfigError if none
    can."""
    for world in range(at_most, 0, -1):
        faults = config.world_faults(world)
        if not faults:
            return world
    raise ConfigError(f"no number of processes up to {at_most} fits: " + "; ".join(faults))


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
        print(largest(config, args.at_most))

    return exit_code(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
