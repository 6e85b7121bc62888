"""``python -m trainer.demo``: the whole main job on embedded defaults, genome to fine-tuned model, in a new
folder.

It runs the very commands that a user would run, prints each, and ends with a table made from what they wrote.
"""

import argparse
import sys
from pathlib import Path

from cluster.process.command import exit_code
from trainer.run.demo import DemoOptions, run_demo


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.demo", description=__doc__)
    parser.add_argument(
        "--generated", action="store_true", help="use the generated genome, even where DNA_DATA is"
    )
    parser.add_argument("--genome-bp", type=int, default=6_000_000, help="size of the generated genome")
    parser.add_argument("--rows", type=int, default=200, help="labelled rows that fine-tuning learns from")
    parser.add_argument("--seeds", type=int, default=2, help="times that it learns from them")
    parser.add_argument("--folder", help="a new folder for the results, default runs/demo-TIME")
    parser.add_argument("--processes", type=int, help="ranks of the pretraining, default 2; 1 on one GPU")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of configs/train/demo.yaml"
    )
    args = parser.parse_args(arguments)
    options = DemoOptions(
        folder=Path(args.folder) if args.folder else None,
        generated=args.generated,
        genome_bp=args.genome_bp,
        rows=args.rows,
        seeds=args.seeds,
        processes=args.processes,
        overrides=args.overrides,
    )
    return exit_code(lambda: run_demo(options), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
