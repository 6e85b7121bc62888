"""The partner table of a dataset as pairs of windows, in BEDPE."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cluster.storage import store
from data_prep.dataset.output import compressed, refuse_folder
from data_prep.dataset.partner_checks import read_table
from data_prep.dataset.read import load_manifest
from data_prep.partners import IDENTITY_UNIT, PartnerTable
from data_prep.shards import Manifest

_SUFFIXES = (".bedpe", ".tsv", ".txt")


class WindowPair(NamedTuple):
    """Two windows that are the same by descent, [start, end) each; ``turned``: on the other strand.
    ``identity``: of the chain that they lie in, 0 to 1."""

    one: tuple[str, str, int, int]  # assembly, contig, start, end
    other: tuple[str, str, int, int]
    turned: bool
    identity: float

    def line(self, number: int) -> str:
        """Of a BEDPE file: its ten columns, then the two assemblies. The score is the identity in 1/1,000."""
        columns = [*self.one[1:], *self.other[1:], f"pair{number}", round(self.identity * 1000), "+"]
        return "\t".join(map(str, [*columns, "-" if self.turned else "+", self.one[0], self.other[0]])) + "\n"


def check_name(uri: str) -> str:
    """``uri``, if it names a BEDPE file, plain or gzip. ValueError if it does not."""
    refuse_folder(uri)
    if not uri.lower().removesuffix(".gz").endswith(_SUFFIXES):
        raise ValueError(
            f"{uri}: pairs are written as text; let its name end in {' or '.join(_SUFFIXES)} (and .gz)"
        )
    return uri


def write_pairs(uri: str, output: str, *, length: int, between: Sequence[str] = ()) -> int:
    """How many pairs of windows of ``length`` bp were written to ``output``, of all assemblies or of those of
    ``between`` alone: gzip where the name ends in .gz.

    Raises:
        ValueError: the dataset has no partners, or none of an assembly of ``between``.
        StoreError, FormatError: it cannot be read.
    """
    manifest = load_manifest(uri)
    table = read_table(uri, manifest)
    if table is None or manifest.partners is None:
        raise ValueError(f"{uri} has no partners; build it with partners.between")
    for name in between:
        if name not in manifest.partners["between"]:
            there = ", ".join(manifest.partners["between"])
            raise ValueError(f"{uri} has no partners of {name!r}; there are those of {there}")
    count = 0
    with store.publish(output) as plain, compressed(plain, output) as file:
        for pair in pairs(table, manifest, length=length):
            if not between or {pair.one[0], pair.other[0]} <= set(between):
                file.write(pair.line(count).encode())
                count += 1
    return count


def pairs(table: PartnerTable, manifest: Manifest, *, length: int) -> Iterator[WindowPair]:
    """Windows of ``length`` bp beside each other along each chain of ``table``, with their partners.

    The middle of a window and that of its partner belong together, between two anchors by interpolation. A
    chain that is shorter than ``length`` gives one pair; windows that would leave their contig are left out.
    """
    bp = {
        (source.name, contig): size for source in manifest.sources for contig, size in source.contigs.items()
    }
    for chain, first in enumerate(table.firsts.tolist()):
        last = first + int(table.anchors_C[chain])
        here, there = table.places[int(table.place_C[chain])], table.places[int(table.partner_C[chain])]
        at, partner_at = table.at_N[first:last], table.partner_at_N[first:last]
        count = max(1, int(at[-1] - at[0]) // length)
        margin = (int(at[-1] - at[0]) - (count - 1) * length) // 2
        middles = at[0] + margin + length * np.arange(count)
        moved = np.rint(np.interp(middles, at, partner_at)).astype(np.int64)
        for middle, partner in zip(middles.tolist(), moved.tolist(), strict=True):
            turned = bool(table.reversed_C[chain])
            start = middle - length // 2
            # On the other strand the letter in the middle has as many before it as behind it here.
            partner_start = partner - (length - 1 - length // 2 if turned else length // 2)
            if (
                min(start, partner_start) < 0
                or start + length > bp[here]
                or partner_start + length > bp[there]
            ):
                continue
            yield WindowPair(
                (*here, start, start + length),
                (*there, partner_start, partner_start + length),
                turned,
                int(table.identity_C[chain]) / IDENTITY_UNIT,
            )
