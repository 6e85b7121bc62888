"""Every sequence of a file as a vector, or each of its windows or letters:
``python -m trainer.embed --model models:/findna@candidate --input regions.fa --output vectors.parquet``."""

import argparse
import sys
from importlib import import_module
from typing import get_args

import torch

from cluster.process import exits, host
from cluster.process.command import exit_code
from trainer.inference import output_format
from trainer.inference.embed.command import EmbedRequest, embed_file
from trainer.inference.embed.picture import Projection
from trainer.inference.embed.vectors import Pooling, Strands
from trainer.inference.precision import Precision


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.embed",
        description="Embed sequences, regions or whole genomes. docs/embeddings.md has examples.",
    )
    parser.add_argument(
        "--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of an export"
    )
    parser.add_argument(
        "--input",
        required=True,
        help="sequences, any URI, plain or compressed: FASTA, .2bit, CSV, TSV, Parquet, or BED with "
        "--reference",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="what to write, any URI: the input's other columns, length, and e0, e1, ...; its name ends in "
        f"{', '.join(output_format.FORMATS)}",
    )
    parser.add_argument("--sequence-column", default="sequence", help="column of the sequences in a table")
    parser.add_argument("--reference", help="genome that the intervals of a BED are cut from: FASTA or .2bit")
    parser.add_argument(
        "--pooling",
        choices=get_args(Pooling),
        default="mean",
        help="over the letters (mean, max), the summary positions, or a row for each letter; default: mean",
    )
    parser.add_argument("--layer", type=int, help="hidden states after so many layers; default: after all")
    parser.add_argument(
        "--strands",
        choices=get_args(Strands),
        default="both",
        help="both averaged, the given one alone, or both kept (e0, ... and r0, ...); default: both",
    )
    parser.add_argument(
        "--each", choices=["record", "window"], help="what has a row (a window: start, end); default: record"
    )
    parser.add_argument(
        "--length",
        type=int,
        help="window of longer records; default: the pretraining length; 1000 of a folder",
    )
    parser.add_argument(
        "--overlap", type=int, default=0, help="letters that windows share; each counts in one; default: 0"
    )
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="of matrix products; default: fp32"
    )
    parser.add_argument("--workers", type=int, help="compute on so many workers of Ray")
    parser.add_argument("--overwrite", action="store_true", help="replace a .zarr that is there")
    parser.add_argument("--picture", help="PNG file: the embeddings in two dimensions")
    parser.add_argument("--colour", help="column of the input that colours the picture")
    parser.add_argument(
        "--projection", choices=get_args(Projection), default="pca", help="of the picture; default: pca"
    )
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = vars(parser.parse_args(arguments))
    debug, workers = args.pop("debug"), args.pop("workers")

    def run() -> int:
        torch.set_num_threads(host.threads_per_process(1))
        # Only who asks for workers needs Ray.
        spread = import_module("trainer.workers.embedding").Workers(workers) if workers is not None else None
        print("\n".join(embed_file(EmbedRequest(**args), spread=spread)))
        return exits.EXIT_OK

    return exit_code(
        run,
        debug=debug,
        resumable=True,
        interrupted="no half of an output is left; the same command goes on from the parts that are done",
    )


if __name__ == "__main__":
    sys.exit(main())
