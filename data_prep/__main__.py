"""`python -m data_prep build|verify|stats|leakage|export|synth`: the commands. Only here is anything
printed."""

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from cluster.process import host, paths
from cluster.process.command import exit_code
from cluster.process.exits import EXIT_FAILED, EXIT_OK
from cluster.storage import store
from cluster.tasks import ray_session
from configs import load
from data_prep.config import DataConfig
from data_prep.dataset.build import build
from data_prep.dataset.export import export
from data_prep.dataset.picture import picture
from data_prep.dataset.read import load_manifest, shard_codes
from data_prep.dataset.stats import stats, table
from data_prep.dataset.verify import verify
from data_prep.shards import SPLITS
from data_prep.split import leakage
from data_prep.split.intervals import Span
from data_prep.synthetic import synthesise

_PER_LINE = 60.0  # seconds between lines where there is no terminal
_NO_FASTA = (
    ".bz2",
    ".xz",
    ".zst",
    ".zip",
    ".bgz",
    ".2bit",
    ".tar",
    ".tgz",
    ".fastq",
    ".fq",
    ".bed",
    ".gff",
    ".gff3",
    ".gtf",
    ".vcf",
    ".sam",
    ".bam",
    ".gb",
    ".gbk",
    ".csv",
    ".tsv",
    ".json",
    ".parquet",
    ".npy",
)


class Progress:
    """A bar on a terminal, from the start on and with a clock that runs, else a line a minute: how much of a
    stage is done, how fast, and how long the rest will take. Call it as ``(stage, done, total or 0)`` and
    close it."""

    def __init__(self) -> None:
        self._stage, self._began, self._heard, self._told = "", *[time.monotonic()] * 3
        self._bar: tqdm | None = None
        self._lock, self._over = threading.Lock(), threading.Event()
        if sys.stderr.isatty():
            self._bar = _bar(desc="starting", bar_format="{desc} [{elapsed}]")
            self._clock = threading.Thread(target=self._run_clock, daemon=True)
            self._clock.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if (
            new := stage != self._stage
        ):  # what was done before its first word took the time since the last one
            self._stage, self._began = stage, self._heard if done else now
        self._heard = now
        if self._bar is not None:
            self._draw(stage, done, total, age=now - self._began if new else None)
        elif now - self._told >= _PER_LINE:
            speed = done / (now - self._began or 1.0)
            if total:
                left = tqdm.format_interval((total - done) / speed) if speed else "?"
                self.say(f"{stage}: {done:,} of {total:,} bp, {speed / 1e6:.1f} Mbp/s, {left} left")
            else:
                self.say(f"{stage}: {done:,} bp so far, {speed / 1e6:.1f} Mbp/s")
            self._told = now

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        self._over.set()
        if self._bar is not None:
            self._clock.join()
            self._bar.close()
            self._bar = None

    def _draw(self, stage: str, done: int, total: int, *, age: float | None) -> None:
        """The bar, moved on; one of its own for a stage that is new, ``age`` seconds old."""
        with self._lock:
            assert self._bar is not None
            if age is not None:
                self._bar.close()
                self._bar = _bar(total=total or None, unit="bp", unit_scale=True, desc=stage)
                self._bar.start_t -= age
                self._bar.last_print_t = self._bar.start_t
            self._bar.total = total or None
            self._bar.update(done - self._bar.n)

    def _run_clock(self) -> None:
        while not self._over.wait(1):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()


def _bar(**how: Any) -> tqdm:
    """A bar that goes at the end. tqdm draws nothing on a terminal that tells no width: that gets 80
    columns."""
    return tqdm(**how, leave=False, ncols=shutil.get_terminal_size().columns)


def _build(args: argparse.Namespace) -> int:
    config = load(DataConfig, args.config, args.overrides)
    paths.refuse_lost(outputs={"output": config.output}, inputs=config.inputs())
    progress = Progress()
    try:
        built = build(
            config, on_progress=progress, on_retry=lambda reason: progress.say(f"trying again: {reason}")
        )
    finally:
        progress.close()
    manifest = built.manifest
    for warning in built.warnings:
        print(f"warning: {warning}")
    if not built.fresh:
        print(f"{config.output} holds this very dataset already; nothing to do")
        return EXIT_OK
    shards = [shard for split in SPLITS for shard in manifest.shards[split]]
    bp, size = sum(map(manifest.bp, SPLITS)), sum(shard.bytes for shard in shards)
    parts = ", ".join(f"{split} {manifest.bp(split):,}" for split in SPLITS)
    print(
        f"{config.output}: {bp:,} bp ({parts}) in {len(shards)} shards, {size / bp:.4f} bytes/bp, "
        f"{built.seconds:.1f} s, {bp / built.seconds / 1e6:.1f} Mbp/s"
    )
    if built.found_shards:
        print(f"of these, {built.found_shards} shards of an earlier build were there and whole")
    if not manifest.bp("val"):
        print(
            "warning: nothing is held out; training needs a val split, so name contigs or a fraction in "
            "split.val"
        )
    if built.dropped_blocks or built.empty_records:
        print(
            f"left out: {built.dropped_blocks} blocks with more N than max_n_fraction "
            f"{config.max_n_fraction:g}, "
            f"{built.empty_records} empty records"
        )
    if ambiguous := sum(source.iupac_to_n for source in manifest.sources):
        print(f"{ambiguous:,} IUPAC ambiguity letters became N")
    if built.leakage:
        print(leakage.table(built.leakage))
    if built.dropped_bp:
        held_out = manifest.bp("val") + manifest.bp("test") + built.dropped_bp
        print(f"dropped from val and test: {built.dropped_bp:,} of {held_out:,} bp, with split.leakage drop")
    return EXIT_OK


def _verify(args: argparse.Namespace) -> int:
    paths.refuse_lost(inputs=[("the dataset", args.uri)])
    progress = Progress()
    try:
        faults = verify(args.uri, workers=args.workers, on_progress=progress)
    finally:
        progress.close()
    for fault in faults:
        print(fault)
    print(
        f"{args.uri}: {len(faults)} fault{'s' * (len(faults) != 1)}; remove what is damaged and build "
        f"again, which "
        "writes only that"
        if faults
        else f"{args.uri} is whole"
    )
    return EXIT_FAILED if faults else EXIT_OK


def _stats(args: argparse.Namespace) -> int:
    paths.refuse_lost(inputs=[("the dataset", args.uri)], outputs={"--picture": args.picture})
    progress = Progress()
    try:
        numbers, blocks = stats(args.uri, workers=args.workers, on_progress=progress)
    finally:
        progress.close()
    print(json.dumps(asdict(numbers), indent=2) if args.json else table(numbers))
    if args.picture:
        store.write_bytes(
            store.absolute(args.picture), picture(numbers, blocks, title=store.basename(args.uri))
        )
    return EXIT_OK


def _leakage(args: argparse.Namespace) -> int:
    paths.refuse_lost(inputs=[("the dataset", args.uri)])
    uri = store.absolute(args.uri)  # workers have another working directory
    manifest = load_manifest(uri)
    workers = args.workers or host.usable()
    chunks = {
        split: [(store.join(uri, shard.name), shard) for shard in manifest.shards[split]] for split in SPLITS
    }
    spans = {
        split: [Span(b.assembly, b.contig, b.start, b.end) for _, b in manifest.blocks(split)]
        for split in SPLITS
    }
    total, scanned, progress = leakage.passes_bp(spans), 0, Progress()

    def on_result(_: int, bp: int) -> None:
        nonlocal scanned
        scanned += bp
        progress("leakage", scanned, total)

    try:
        with ray_session.session(workers):
            report = leakage.leakage(chunks, shard_codes, workers=workers, on_result=on_result)
    finally:
        progress.close()
    print(json.dumps(report.to_dict(), indent=2) if args.json else leakage.table(report))
    return EXIT_OK


def _export(args: argparse.Namespace) -> int:
    paths.refuse_lost(inputs=[("the dataset", args.uri)], outputs={"--fasta": args.fasta})
    bp = export(args.uri, split=args.split, fasta=store.absolute(args.fasta))
    print(f"{args.fasta}: {bp:,} bp")
    return EXIT_OK


def _synth(args: argparse.Namespace) -> int:
    paths.refuse_lost(outputs={"--output": args.output})
    made = synthesise(store.absolute(args.output), bp=args.bp, seed=args.seed)
    rows = ", ".join(f"{name} {count}" for name, count in made.task.items())
    bp = sum(made.chromosomes.values())
    print(f"{made.fasta}: {bp:,} bp in {len(made.chromosomes)} chromosomes; task rows: {rows}")
    return EXIT_OK


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def _no_folder(uri: str) -> None:
    try:
        folder = uri.endswith("/") or (store.is_local(uri) and store.local_path(uri).is_dir())
    except (ValueError, store.StoreError) as fault:
        raise argparse.ArgumentTypeError(str(fault)) from fault
    if folder:
        raise argparse.ArgumentTypeError(f"{uri} is a folder; give the name of a file in it")


def _fasta(uri: str) -> str:
    """``uri``, unless its name says what is not written."""
    _no_folder(uri)
    if uri.lower().removesuffix(".gz").endswith(_NO_FASTA):
        raise argparse.ArgumentTypeError(
            f"{uri} says another format; a FASTA is written as text, or as gzip to a name that ends in .gz"
        )
    return uri


def _picture(uri: str) -> str:
    """``uri``, unless its name says what is not written."""
    _no_folder(uri)
    if "." in store.basename(uri) and not uri.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(
            f"{uri} says another format; a PNG is written, to a name that ends in .png"
        )
    return uri


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description="genomes become shards")
    commands = parser.add_subparsers(required=True, metavar="command")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of a failure")

    one = commands.add_parser("build", parents=[debug], help="references to shards and a manifest")
    one.add_argument("--config", required=True, help="YAML, such as configs/data/yeast.yaml")
    one.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override of a config key, such as output=URI"
    )
    one.set_defaults(run=_build)

    read = argparse.ArgumentParser(add_help=False)
    read.add_argument("uri", help="the dataset")
    read.add_argument(
        "--workers", type=_positive, metavar="N", help="Ray workers (default: all cores for a large dataset)"
    )

    one = commands.add_parser(
        "verify", parents=[debug, read], help="re-read every shard against the manifest"
    )
    one.set_defaults(run=_verify)

    one = commands.add_parser(
        "stats", parents=[debug, read], help="contigs, bp, N and soft-mask share, splits, bytes per bp"
    )
    one.add_argument("--json", action="store_true", help="as JSON")
    one.add_argument("--picture", metavar="URI", type=_picture, help="where to write a PNG of it")
    one.set_defaults(run=_stats)

    one = commands.add_parser("leakage", parents=[debug, read], help="what val and test share with train")
    one.add_argument("--json", action="store_true", help="as JSON")
    one.set_defaults(run=_leakage)

    one = commands.add_parser("export", parents=[debug], help="the sequence back out of the shards, as FASTA")
    one.add_argument("uri")
    one.add_argument("--split", required=True, choices=SPLITS)
    one.add_argument(
        "--fasta",
        required=True,
        metavar="URI",
        type=_fasta,
        help="where to write it, as text, or gzip where the name ends in .gz",
    )
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
    return exit_code(
        lambda: args.run(args),
        debug=args.debug,
        resumable=True,
        interrupted="finished shards of a build stay, and the same command goes on from them",
    )


if __name__ == "__main__":
    sys.exit(main())
