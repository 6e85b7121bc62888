"""Scores of variants, or of all substitutions of regions:
``python -m trainer.variants --model models:/m@candidate --vcf x.vcf --reference x.fa --output x.tsv``."""

import argparse
import sys
from typing import get_args

import torch

from cluster.process import exits, host
from cluster.process.command import exit_code
from trainer.inference.precision import Precision
from trainer.inference.variants import vcf_writer
from trainer.inference.variants.command import FORMATS, VariantsRequest, score_file
from trainer.inference.variants.forward import Strands
from trainer.inference.variants.scoring import SCORES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.variants", description="Score variants, or all substitutions of regions."
    )
    add = parser.add_argument
    add("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of an export")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--vcf", help="variants, any URI: VCF, plain or compressed, or BCF; no index needed")
    given.add_argument("--bed", help="regions, any URI, all of whose substitutions are scored")
    add("--reference", required=True, help="genome that they are on, any URI: FASTA or .2bit")
    add("--output", required=True, help=f"file to write, any URI; its name ends in {', '.join(FORMATS)}")
    add("--scores", default=",".join(SCORES), help="which, with commas between; default: %(default)s")
    add("--length", type=int, help="letters of a window; default: the pretraining length; 1000 of a folder")
    add("--strands", choices=get_args(Strands), default="both", help="what is read; default: %(default)s")
    add("--strict", action="store_true", help="fail before the work where a variant does not fit")
    add("--prefix", default=vcf_writer.PREFIX, help="of INFO fields in a VCF; default: %(default)s")
    add("--picture", help="with --bed: PNG of the first regions, a logo and a heat map of each")
    add("--precision", choices=get_args(Precision), default="fp32", help="of products; default: %(default)s")
    add("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    add("--debug", action="store_true", help="show tracebacks")
    options = vars(parser.parse_args(arguments))
    debug = options.pop("debug")

    def run() -> int:
        torch.set_num_threads(host.threads_per_process(1))
        print("\n".join(score_file(VariantsRequest(**options))))
        return exits.EXIT_OK

    return exit_code(
        run,
        debug=debug,
        resumable=True,
        interrupted="what is computed is kept beside the output, and the same command goes on",
    )


if __name__ == "__main__":
    sys.exit(main())
