"""A pretraining run as a page: ``python -m trainer.report RUN_ID``. Writes index.html and the pictures as PNG
files."""

import argparse
import sys

from cluster.process import exits
from cluster.process.command import exit_code
from trainer.report.report import write_report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.report", description=__doc__)
    parser.add_argument("run_id", metavar="RUN_ID", help="MLflow run of a pretraining")
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--output", help="folder to write to, any URI; default <run.dir>/report")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)

    def run() -> int:
        print(write_report(args.run_id, track_uri=args.track_uri, output=args.output))
        return exits.EXIT_OK

    return exit_code(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
