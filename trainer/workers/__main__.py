"""A registered model on labelled tasks: every mode and seed a unit of work on Ray, each done once.

``python -m cluster finetune --model models:/findna@candidate --tasks configs/tasks/*.yaml [key=value ...]``
"""

import argparse
import sys

from cluster.process import exits
from cluster.process.command import exit_code
from trainer.workers.claims import LEASE_S
from trainer.workers.command import WorkersRequest, finetune_on_workers


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster finetune", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument(
        "--tasks", required=True, nargs="+", help="YAML files, see configs/tasks/; then key=value"
    )
    parser.add_argument("--watch", action="store_true", help="stay, and take each new version with the alias")
    parser.add_argument(
        "--poll-s", type=_seconds, default=10.0, help="seconds between looks for new versions"
    )
    parser.add_argument(
        "--wait-s", type=_seconds, default=60.0, help="how long to wait for an MLflow that is away"
    )
    parser.add_argument(
        "--lease-s",
        type=_seconds,
        default=LEASE_S,
        help="after so long without a sign another driver is gone",
    )
    parser.add_argument("--cpus", type=_count, help="of a local Ray; default: those of this process")
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--json", help="also write the rows there, one a unit")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of every task's config")
    args = parser.parse_intermixed_args(arguments)
    given = [*args.tasks, *args.overrides]  # argparse gives all that follows --tasks to it

    def run() -> int:
        request = WorkersRequest(
            args.model,
            tuple(word for word in given if "=" not in word),
            tuple(word for word in given if "=" in word),
            args.watch,
            args.poll_s,
            args.wait_s,
            args.lease_s,
            args.cpus,
            args.track_uri,
            args.json,
        )
        finetune_on_workers(request)
        return exits.EXIT_OK

    return exit_code(
        run,
        debug=args.debug,
        resumable=True,
        interrupted="finished results are in MLflow; the same command computes what is missing",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of CPUs, which begin at 1")
    return count


if __name__ == "__main__":
    sys.exit(main())
