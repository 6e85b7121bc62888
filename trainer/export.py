"""A model as a folder that opens anywhere:
``python -m trainer.export --model models:/findna@candidate --output shared/findna``."""

import argparse
import sys

from cluster.process import exits
from cluster.process.command import exit_code
from trainer.sharing.export_command import ExportRequest, export_model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export",
        description="Write a model as a folder that transformers and trainer.load_model open.",
    )
    parser.add_argument(
        "--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, or its folder, any URI"
    )
    parser.add_argument("--output", required=True, help="folder to write, any URI; new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    parser.add_argument(
        "--licence", default="", help="of the weights, for the model card, as hubs write it: apache-2.0"
    )
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)

    def run() -> int:
        request = ExportRequest(args.model, args.output, args.overwrite, args.licence, args.track_uri)
        print("\n".join(export_model(request)))
        return exits.EXIT_OK

    return exit_code(
        run,
        debug=args.debug,
        resumable=True,
        interrupted="no folder was written; the same command starts again",
    )


if __name__ == "__main__":
    sys.exit(main())
