"""What the commands of `python -m data_prep` do. Only here is anything printed."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from cluster.process import paths
from cluster.process.exits import EXIT_FAILED, EXIT_OK
from cluster.process.progress import Progress, say
from cluster.storage import store
from configs import ConfigError, load
from data_prep import synthetic
from data_prep.config import DataConfig
from data_prep.dataset import export as dataset_export
from data_prep.dataset import stats as dataset_stats
from data_prep.dataset import verify as dataset_verify
from data_prep.dataset.build import build as build_dataset
from data_prep.dataset.leaks import dataset_leakage
from data_prep.dataset.pairs import write_pairs
from data_prep.dataset.picture import picture as draw
from data_prep.dataset.prune import prune as prune_dataset
from data_prep.dataset.read import load_manifest
from data_prep.dataset.shares import shares, shares_table
from data_prep.dataset.summary import summary
from data_prep.split.leakage import table as leakage_table


def build(config_path: str, overrides: list[str]) -> int:
    """Writes the dataset of a config file."""
    config = load(DataConfig, config_path, overrides)
    paths.refuse_lost(outputs={"output": config.output}, inputs=config.inputs())
    with Progress() as progress:
        built = build_dataset(
            config, on_progress=progress, on_retry=lambda reason: say(f"trying again: {reason}")
        )
    print("\n".join(summary(built, config)))
    return EXIT_OK


def verify(uri: str, *, workers: int | None) -> int:
    """Compares a dataset with its manifest."""
    paths.refuse_lost(inputs=[("the dataset", uri)])
    with Progress() as progress:
        faults = dataset_verify.verify(uri, workers=workers, on_progress=progress)
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{uri} is whole")
        return EXIT_OK
    print(
        f"{uri}: {len(faults)} fault{'s' * (len(faults) != 1)}; remove what is damaged and build again, "
        "which writes only that"
    )
    return EXIT_FAILED


def stats(
    uris: Sequence[str],
    *,
    weights: Sequence[float] | None,
    workers: int | None,
    as_json: bool,
    picture: str | None,
) -> int:
    """Counts what a dataset holds, or each of a mixture, and what training reads of each assembly."""
    paths.refuse_lost(inputs=[("the dataset", uri) for uri in uris], outputs={"--picture": picture})
    if twice := sorted({uri for uri in uris if uris.count(uri) > 1}):
        raise ConfigError(
            f"given twice: {', '.join(twice)}; give each dataset once, with the sum of its weights"
        )
    weights = weights or [1.0] * len(uris)
    if len(weights) != len(uris):
        raise ConfigError(f"--weights: {len(weights)} were given for {len(uris)} datasets; give one for each")
    if len(uris) > 1:
        if picture:
            raise ConfigError("--picture: it is of one dataset; give one URI")
        manifests = [load_manifest(store.absolute(uri)) for uri in uris]
        found = shares(list(zip(uris, manifests, weights, strict=True)))
        print(json.dumps([asdict(each) for each in found], indent=2) if as_json else shares_table(found))
        return EXIT_OK
    (uri,) = uris
    with Progress() as progress:
        numbers, blocks = dataset_stats.stats(uri, workers=workers, on_progress=progress)
    print(json.dumps(asdict(numbers), indent=2) if as_json else dataset_stats.table(numbers))
    if picture:
        store.write_bytes(store.absolute(picture), draw(numbers, blocks, title=store.basename(uri)))
    return EXIT_OK


def leakage(uri: str, *, workers: int | None, as_json: bool) -> int:
    """Reports what val and test of a dataset share with train."""
    paths.refuse_lost(inputs=[("the dataset", uri)])
    with Progress() as progress:
        report = dataset_leakage(uri, workers=workers, on_progress=progress)
    print(json.dumps(report.to_dict(), indent=2) if as_json else leakage_table(report))
    return EXIT_OK


def prune(uri: str, *, keep: Sequence[str]) -> int:
    """Removes what only earlier manifests of a dataset need."""
    paths.refuse_lost(inputs=[("the dataset", uri)])
    done = prune_dataset(store.absolute(uri), keep=keep)
    print(f"{uri}: removed {done.manifests} earlier manifests, {done.files} files of {done.bytes:,} bytes")
    return EXIT_OK


def pairs(uri: str, *, length: int, output: str, between: Sequence[str]) -> int:
    """Writes windows of assemblies that are the same by descent."""
    paths.refuse_lost(inputs=[("the dataset", uri)], outputs={"--output": output})
    count = write_pairs(store.absolute(uri), store.absolute(output), length=length, between=between)
    print(f"{output}: {count:,} pairs of {length:,} bp")
    return EXIT_OK


def export(uri: str, *, split: str, fasta: str) -> int:
    """Writes a split of a dataset as FASTA."""
    paths.refuse_lost(inputs=[("the dataset", uri)], outputs={"--fasta": fasta})
    bp = dataset_export.export(uri, split=split, fasta=store.absolute(fasta))
    print(f"{fasta}: {bp:,} bp")
    return EXIT_OK


def synth(output: str, *, bp: int, seed: int) -> int:
    """Generates a genome and a labelled task."""
    paths.refuse_lost(outputs={"--output": output})
    made = synthetic.synthesise(store.absolute(output), bp=bp, seed=seed)
    rows = ", ".join(f"{name} {count}" for name, count in made.task.items())
    bp = sum(made.chromosomes.values())
    print(f"{made.fasta}: {bp:,} bp in {len(made.chromosomes)} chromosomes; task rows: {rows}")
    return EXIT_OK
