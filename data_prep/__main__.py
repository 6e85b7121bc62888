"""`python -m data_prep build|verify|stats|export|synth`: the commands. Only here is anything printed."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from tqdm import tqdm

from cluster import store
from cluster.process import EXIT_FAILED, EXIT_OK, exit_code
from configs import load
from data_prep.build import build
from data_prep.config import DataConfig
from data_prep.export import export
from data_prep.shards import SPLITS
from data_prep.stats import stats, table
from data_prep.synthetic import synthesise
from data_prep.verify import verify


class Progress:
    """A bar on a terminal, else a line a minute."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._stage, self._began, self._told = "", 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._began, self._told = stage, now, now
        if sys.stderr.isatty():
            self._bar = self._bar or tqdm(total=total, unit="bp", unit_scale=True, desc=stage, leave=False)
            self._bar.update(done - self._bar.n)
        elif now - self._told >= 60:
            speed = done / (now - self._began)
            print(f"{stage}: {done:,} of {total:,} bp, {speed / 1e6:.1f} Mbp/s", file=sys.stderr, flush=True)
            self._told = now

    def close(self) -> None:
        if self._bar:
            self._bar.close()
            self._bar = None


def _build(args: argparse.Namespace) -> int:
    config = load(DataConfig, args.config, args.overrides)
    progress = Progress()
    try:
        built = build(config, on_progress=progress)
    finally:
        progress.close()
    manifest = built.manifest
    if not built.fresh:
        print(f"{config.output} holds this very dataset already; nothing to do")
        return EXIT_OK
    shards = [shard for split in SPLITS for shard in manifest.shards[split]]
    bp, size = sum(map(manifest.bp, SPLITS)), sum(shard.bytes for shard in shards)
    parts = ", ".join(f"{split} {manifest.bp(split):,}" for split in SPLITS)
    print(f"{config.output}: {bp:,} bp ({parts}) in {len(shards)} shards, {size / bp:.4f} bytes/bp, "
          f"{built.seconds:.1f} s, {bp / built.seconds / 1e6:.1f} Mbp/s")
    if not manifest.bp("val"):
        print("warning: nothing is held out; training needs a val split, so name contigs or a fraction in split.val")
    if built.dropped_blocks or built.empty_records:
        print(f"left out: {built.dropped_blocks} blocks with more N than max_n_fraction {config.max_n_fraction:g}, "
              f"{built.empty_records} empty records")
    return EXIT_OK


def _verify(args: argparse.Namespace) -> int:
    faults = verify(args.uri)
    for fault in faults:
        print(fault)
    print(f"{args.uri}: {len(faults)} fault{'s' * (len(faults) != 1)}" if faults else f"{args.uri} is whole")
    return EXIT_FAILED if faults else EXIT_OK


def _stats(args: argparse.Namespace) -> int:
    numbers = stats(args.uri)
    print(json.dumps(asdict(numbers), indent=2) if args.json else table(numbers))
    return EXIT_OK


def _export(args: argparse.Namespace) -> int:
    bp = export(args.uri, split=args.split, fasta=store.absolute(args.fasta))
    print(f"{args.fasta}: {bp:,} bp")
    return EXIT_OK


def _synth(args: argparse.Namespace) -> int:
    made = synthesise(store.absolute(args.output), bp=args.bp, seed=args.seed)
    rows = ", ".join(f"{name} {count}" for name, count in made.task.items())
    bp = sum(made.chromosomes.values())
    print(f"{made.fasta}: {bp:,} bp in {len(made.chromosomes)} chromosomes; task rows: {rows}")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description="genomes become shards")
    commands = parser.add_subparsers(required=True, metavar="command")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of a failure")

    one = commands.add_parser("build", parents=[debug], help="references to shards and a manifest")
    one.add_argument("--config", required=True, help="YAML, such as configs/data/yeast.yaml")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="override of a config key, such as output=URI")
    one.set_defaults(run=_build)

    one = commands.add_parser("verify", parents=[debug], help="re-read every shard against the manifest")
    one.add_argument("uri")
    one.set_defaults(run=_verify)

    one = commands.add_parser("stats", parents=[debug], help="contigs, bp, N and soft-mask share, splits, bytes per bp")
    one.add_argument("uri")
    one.add_argument("--json", action="store_true", help="as JSON")
    one.set_defaults(run=_stats)

    one = commands.add_parser("export", parents=[debug], help="the sequence back out of the shards, as FASTA")
    one.add_argument("uri")
    one.add_argument("--split", required=True, choices=SPLITS)
    one.add_argument("--fasta", required=True, help="where to write it")
    one.set_defaults(run=_export)

    one = commands.add_parser("synth", parents=[debug], help="a generated genome and a labelled task")
    one.add_argument("--output", required=True, help="folder for genome.fa.gz and task/*.csv")
    one.add_argument("--bp", type=int, default=6_000_000)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=_synth)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command line ``argv``."""
    args = _parser().parse_args(argv)
    return exit_code(lambda: args.run(args), debug=args.debug,
                     interrupted="what this command had written is removed")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
