"""Every row of a file through a fine-tuned model:
``python -m trainer.predict --model models:/findna-mouse_0@champion --input x.fa --output y.parquet``."""

import argparse
import sys
from typing import get_args

import torch

from cluster.process import exits, host
from cluster.process.command import exit_code
from trainer.evaluation.tasks.kept.predict_command import PredictRequest, predict_file
from trainer.inference import table_writer
from trainer.inference.precision import Precision


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.predict", description="Predict with a fine-tuned model."
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a fine-tuned model: models:/NAME-TASK@ALIAS, models:/NAME-TASK/VERSION, or its folder",
    )
    parser.add_argument(
        "--input",
        required=True,
        help="sequences, any URI: FASTA, CSV, TSV, Parquet, or BED with --reference; plain or compressed",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="file to write, any URI: the input's other columns, then label and p_LABEL of each label, or "
        f"value; its name ends in {', '.join(table_writer.FORMATS)}",
    )
    parser.add_argument("--sequence-column", default="sequence", help="column of the sequences in a table")
    parser.add_argument("--reference", help="genome that the intervals of a BED are cut from: FASTA or .2bit")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="of matrix products; default: fp32"
    )
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)

    def run() -> int:
        torch.set_num_threads(host.threads_per_process(1))
        request = PredictRequest(
            args.model,
            args.input,
            args.output,
            args.sequence_column,
            args.reference,
            args.precision,
            args.track_uri,
        )
        print("\n".join(predict_file(request)))
        return exits.EXIT_OK

    return exit_code(
        run,
        debug=args.debug,
        resumable=True,
        interrupted="no part of a file is left; the same command starts again",
    )


if __name__ == "__main__":
    sys.exit(main())
