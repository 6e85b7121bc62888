"""A study: arms pretrained at equal FLOPs, each on all labelled tasks, and one report that compares them.

``python -m cluster study --config configs/studies/NAME.yaml [key=value ...]``
"""

import argparse
import sys

from cluster.process.command import exit_code
from trainer.study.command import STAGES, StudyRequest, run_study


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster study", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file, see configs/studies/")
    parser.add_argument("--plan", action="store_true", help="print what would be run, and do nothing")
    parser.add_argument("--only", choices=STAGES, help="do this part alone; the report of what there is")
    parser.add_argument("--cpus", type=_count, help="of a local Ray; default: those of this process")
    parser.add_argument(
        "--wait-s", type=_seconds, default=60.0, help="how long to wait for an MLflow that is away"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the study's config")
    args = parser.parse_intermixed_args(arguments)

    def run() -> int:
        given = tuple(args.overrides)
        return run_study(StudyRequest(args.config, given, args.plan, args.only, args.cpus, args.wait_s))

    return exit_code(
        run,
        debug=args.debug,
        resumable=True,
        interrupted="pretrainings have saved, finished results are in MLflow; the same command goes on",
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
