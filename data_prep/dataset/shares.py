"""What training reads of each assembly: of one dataset, or of a mixture of several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.config import WEIGHTS
from data_prep.shards import SPLITS, Manifest


@dataclass(frozen=True)
class AssemblyShare:
    """One assembly: its ``bp`` by split, how often an epoch reads its train split, and its share of all
    letters that training reads. ``clade``: where the weights were made by clade.

    The share is of letters. Windows are cut inside blocks, so that of many short blocks it is a few percent
    less.
    """

    dataset: str
    assembly: str
    clade: str | None
    bp: dict[str, int]
    weight: float
    share: float


def shares(datasets: Sequence[tuple[str, Manifest, float]]) -> list[AssemblyShare]:
    """The assemblies of ``datasets`` (URI, manifest, weight in the mixture), in their order."""
    total = sum(weight for _, manifest, weight in datasets if manifest.bp("train"))
    found = []
    for uri, manifest, weight in datasets:
        bp = {split: _bp_by_assembly(manifest, split) for split in SPLITS}
        read = {source.name: bp["train"].get(source.name, 0) * source.weight for source in manifest.sources}
        all_read = sum(read.values())
        for source in manifest.sources:
            share = weight / total * read[source.name] / all_read if all_read else 0.0
            own = {split: bp[split].get(source.name, 0) for split in SPLITS}
            clade = source.filters.get(WEIGHTS, {}).get("clade")
            found.append(AssemblyShare(uri, source.name, clade, own, source.weight, share))
    return found


def shares_table(found: Sequence[AssemblyShare]) -> str:
    """``found`` as text for a terminal; with the dataset's number in the mixture where there are several."""
    numbers = {uri: number for number, uri in enumerate(dict.fromkeys(each.dataset for each in found), 1)}
    names = [
        f"{numbers[each.dataset]}:{each.assembly}" * (len(numbers) > 1) or each.assembly for each in found
    ]
    clades = [each.clade or "" for each in found]
    width, clade_width = max(8, *map(len, names)), max(0, *map(len, clades))
    clade_head = f"  {'clade':{max(5, clade_width)}}" if clade_width else ""
    lines = [
        f"{'assembly':{width}}{clade_head}{'train':>15}{'val':>13}{'test':>13}{'weight':>11}  of training"
    ]
    for name, clade, each in zip(names, clades, found, strict=True):
        own = f"  {clade:{max(5, clade_width)}}" if clade_width else ""
        lines.append(
            f"{name:{width}}{own}{each.bp['train']:>15,}{each.bp['val']:>13,}{each.bp['test']:>13,}"
            f"{each.weight:>11.5g}{each.share:>13.2%}"
        )
    lines += [f"{number}: {uri}" for uri, number in numbers.items() if len(numbers) > 1]
    return "\n".join(lines)


def _bp_by_assembly(manifest: Manifest, split: str) -> dict[str, int]:
    columns = manifest.blocks(split).columns
    bp = np.bincount(columns.place_N, columns.bp_N, len(columns.places)).astype(np.int64)
    found: dict[str, int] = {}
    for (assembly, _), own in zip(columns.places, bp.tolist(), strict=True):
        found[assembly] = found.get(assembly, 0) + own
    return found
