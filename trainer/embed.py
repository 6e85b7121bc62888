"""Sequences as vectors: mean and max over the letters, both strands averaged; and the command that writes a
table.

``python -m trainer.embed --model models:/findna@champion --input regions.fa --output embeddings.parquet``

Shapes: N sequences, B rows of a batch, L letters, D hidden, 2 strands.
"""

import argparse
import sys

import torch

from cluster.process import host, paths
from cluster.process.command import exit_code
from cluster.process.exits import EXIT_OK
from cluster.storage import store
from configs import ConfigError
from data_prep.sources import fasta
from trainer.evaluation import embedding_table
from trainer.evaluation.embedding import DEFAULT_LENGTH, best_device, embed_fasta, open_model
from trainer.tracking.registry import Registry


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.embed", description="Embed every record of a FASTA."
    )
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--input", required=True, help="FASTA, plain or compressed, any URI")
    parser.add_argument(
        "--output",
        required=True,
        help=f"file to write, any URI: name, length, e0, e1, ...; its name "
        f"ends in {', '.join(embedding_table.FORMATS)}",
    )
    parser.add_argument(
        "--length", type=int, help="window of longer records; default: the pretraining length"
    )
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)

    def run() -> int:
        paths.refuse_lost(outputs={"--output": args.output}, inputs=[("--input", args.input)])
        torch.set_num_threads(host.threads_per_process(1))
        end = embedding_table.format_of(args.output)
        if args.length is not None and args.length < 1:
            raise ConfigError(f"--length {args.length} must be at least 1")
        store.refuse_pipe(args.input)
        registry = Registry(args.track_uri)
        registry.version(args.model)
        ambiguous = sum(
            record.ambiguous for record in fasta.records(args.input)
        )  # all of it is read before work
        model = open_model(registry, args.model)
        version, source = model.version, model.version.run_id
        length = args.length or int(
            registry.run(source).data.params.get("data.length", DEFAULT_LENGTH) if source else DEFAULT_LENGTH
        )
        device = best_device()
        table = embed_fasta(model.network.to(device), args.input, length=length, device=device)
        with store.publish(args.output) as file:
            embedding_table.write(table, file, end=end)
        print(
            f"{args.output}: {len(table):,} sequences, {table['length'].sum():,} bp, {table.shape[1] - 2} "
            f"numbers "
            f"each ({embedding_table.FORMATS[end]}; {version.name} version {version.version}, windows of "
            f"{length} bp)"
        )
        if ambiguous:
            print(f"{ambiguous:,} ambiguous letters (IUPAC codes such as R or Y) were read as N")
        if end == ".npy":
            print("an .npy holds no names: row i is record i of the FASTA")
        return EXIT_OK

    return exit_code(
        run,
        debug=args.debug,
        resumable=True,
        interrupted="no part of a file is left; the same command starts again",
    )


if __name__ == "__main__":
    sys.exit(main())
