"""`python -m data_prep build|verify|stats|leakage|pairs|prune|export|synth`: the command line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.process.command import exit_code
from data_prep import commands
from data_prep.dataset import export, pairs, picture
from data_prep.shards import SPLITS

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command line ``argv``."""
    args = _parser().parse_args(argv)
    return exit_code(
        lambda: args.run(args),
        debug=args.debug,
        resumable=True,
        interrupted="finished shards of a build stay, and the same command goes on from them",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description="genomes become shards")
    subparsers = parser.add_subparsers(required=True, metavar="command")
    debug, dataset, workers = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    debug.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    dataset.add_argument("uri", help="the dataset")
    workers.add_argument(
        "--workers",
        type=_checked(_positive),
        metavar="N",
        help="Ray workers (default: all cores for a large dataset)",
    )
    reads = [debug, dataset, workers]
    _add_build(subparsers, [debug])
    _add_verify(subparsers, reads)
    _add_stats(subparsers, [debug, workers])
    _add_leakage(subparsers, reads)
    _add_pairs(subparsers, [debug, dataset])
    _add_prune(subparsers, [debug, dataset])
    _add_export(subparsers, [debug, dataset])
    _add_synth(subparsers, [debug])
    return parser


def _add_build(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    one = subparsers.add_parser("build", parents=parents, help="references to shards and a manifest")
    one.add_argument("--config", required=True, help="YAML, such as configs/data/yeast.yaml")
    one.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override of a config key, such as output=URI"
    )
    one.set_defaults(run=lambda args: commands.build(args.config, args.overrides))


def _add_verify(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    one = subparsers.add_parser("verify", parents=parents, help="re-read every shard against the manifest")
    one.set_defaults(run=lambda args: commands.verify(args.uri, workers=args.workers))


def _add_stats(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    one = subparsers.add_parser(
        "stats", parents=parents, help="contigs, bp, N and soft-mask share, splits, bytes per bp"
    )
    one.add_argument("uris", metavar="uri", nargs="+", help="the dataset, or those of a mixture")
    one.add_argument(
        "--weights",
        metavar="W,W",
        type=_checked(_weights),
        help="of a mixture: weight of each dataset, as in data.uri (default: 1 each)",
    )
    one.add_argument("--json", action="store_true", help="as JSON")
    one.add_argument(
        "--picture", metavar="URI", type=_checked(picture.check_name), help="where to write a PNG of it"
    )
    one.set_defaults(
        run=lambda args: commands.stats(
            args.uris,
            weights=args.weights,
            workers=args.workers,
            as_json=args.json,
            picture=args.picture,
        )
    )


def _add_leakage(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    one = subparsers.add_parser("leakage", parents=parents, help="what val and test share with train")
    one.add_argument("--json", action="store_true", help="as JSON")
    one.set_defaults(run=lambda args: commands.leakage(args.uri, workers=args.workers, as_json=args.json))


def _add_pairs(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    one = subparsers.add_parser(
        "pairs", parents=parents, help="windows that are the same by descent, of a dataset with partners"
    )
    one.add_argument("--length", type=_checked(_positive), default=1000, metavar="BP", help="default: 1000")
    one.add_argument(
        "--between", nargs="+", default=[], metavar="ASSEMBLY", help="of these alone (default: all)"
    )
    one.add_argument(
        "--output",
        required=True,
        metavar="URI",
        type=_checked(pairs.check_name),
        help="BEDPE, such as p.bedpe.gz",
    )
    one.set_defaults(
        run=lambda args: commands.pairs(
            args.uri, length=args.length, output=args.output, between=args.between
        )
    )


def _add_prune(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    one = subparsers.add_parser(
        "prune", parents=parents, help="remove what only earlier manifests of a dataset that grew need"
    )
    one.add_argument(
        "--keep",
        metavar="SHA256",
        nargs="+",
        default=[],
        help="earlier manifests that stay, by the beginning of their sha256",
    )
    one.set_defaults(run=lambda args: commands.prune(args.uri, keep=args.keep))


def _add_export(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    one = subparsers.add_parser(
        "export", parents=parents, help="the sequence back out of the shards, as FASTA"
    )
    one.add_argument("--split", required=True, choices=SPLITS)
    one.add_argument(
        "--fasta",
        required=True,
        metavar="URI",
        type=_checked(export.check_name),
        help="where to write it, as text, or gzip where the name ends in .gz",
    )
    one.set_defaults(run=lambda args: commands.export(args.uri, split=args.split, fasta=args.fasta))


def _add_synth(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    one = subparsers.add_parser("synth", parents=parents, help="a generated genome and a labelled task")
    one.add_argument("--output", required=True, help="folder for genome.fa.gz and task/*.csv")
    one.add_argument("--bp", type=int, default=6_000_000)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=lambda args: commands.synth(args.output, bp=args.bp, seed=args.seed))


def _weights(text: str) -> list[float]:
    found = [float(part) for part in text.split(",")]
    if not all(0 < weight < float("inf") for weight in found):
        raise ValueError(f"must be numbers above 0, not {text!r}")
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def _checked(check: Callable[[str], T]) -> Callable[[str], T]:
    """``check`` for argparse, which shows the message of an ArgumentTypeError alone."""

    def convert(text: str) -> T:
        try:
            return check(text)
        except (ValueError, OSError) as fault:
            raise argparse.ArgumentTypeError(str(fault)) from fault

    return convert


if __name__ == "__main__":
    sys.exit(main())
