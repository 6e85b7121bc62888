"""Every record of a FASTA as a vector:
``python -m trainer.embed --model models:/findna@champion --input regions.fa --output embeddings.parquet``."""

import argparse
import sys

import torch

from cluster.process import exits, host
from cluster.process.command import exit_code
from trainer.inference import output_format
from trainer.inference.embed.command import EmbedRequest, embed_file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.embed", description="Embed every record of a FASTA."
    )
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--input", required=True, help="FASTA, plain or compressed, any URI")
    formats = ", ".join(output_format.FORMATS)
    parser.add_argument(
        "--output",
        required=True,
        help=f"file to write, any URI: name, length, e0, e1, ...; its name ends in {formats}",
    )
    parser.add_argument(
        "--length", type=int, help="window of longer records; default: the pretraining length"
    )
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)

    def run() -> int:
        torch.set_num_threads(host.threads_per_process(1))
        request = EmbedRequest(args.model, args.input, args.output, args.length, args.track_uri)
        print("\n".join(embed_file(request)))
        return exits.EXIT_OK

    return exit_code(
        run,
        debug=args.debug,
        resumable=True,
        interrupted="no part of a file is left; the same command starts again",
    )


if __name__ == "__main__":
    sys.exit(main())
