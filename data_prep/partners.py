"""The partner table: which places of which genomes are the same by descent. Standard library and numpy only.

A chain is a stretch of one contig and its partner, a stretch of a contig of another assembly, on either
strand. It is given by anchors: letters of both that belong together. Between two anchors of a chain positions
are interpolated.

File (column_file.py), little-endian:
    head: {"k", "places": [[assembly, contig], ...], "chains", "anchors"}
    u32[chains] place, then u32[chains] partner's place: numbers in ``places``
    u8[chains] whether the partner lies on the other strand
    u16[chains] identity, in 1/10,000
    u32[chains] number of anchors
    i64[chains] position of the first anchor, then i64[chains] that of its partner
    u16[anchors] bp from the anchor before, then u16[anchors] of its partner (downwards on the other strand);
        0 at a chain's first
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.column_file import ColumnFile, FormatError, read_columns
from data_prep.shards import Manifest

PARTNERS = "partners.bin"  # of a dataset that has grown: partners-HASH.bin, as its manifest says
IDENTITY_UNIT = 10_000
MOST_APART = 65_535  # bp between two anchors of a chain

Numbers = np.ndarray[Any, np.dtype[np.int64]]

_FILE = ColumnFile(b"DNAP", 1, "partner table", "; build the dataset again")
_CHAIN_COLUMNS = ("<u4", "<u4", "u1", "<u2", "<u4", "<i8", "<i8")
_ANCHOR_COLUMNS = ("<u2", "<u2")


@dataclass(frozen=True, eq=False)
class PartnerTable:
    """C chains with N anchors in all, chain after chain; positions are 0-based, in the contig.

    In a chain ``at_N`` ascends, and ``partner_at_N`` ascends, or descends where the chain is ``reversed_C``.
    """

    k: int  # of the minimisers that it was made of
    places: tuple[tuple[str, str], ...]  # (assembly, contig)
    place_C: Numbers
    partner_C: Numbers
    reversed_C: Numbers  # 0 or 1
    identity_C: Numbers  # in 1/10,000: how many letters are equal where both have as many between anchors
    anchors_C: Numbers
    at_N: Numbers
    partner_at_N: Numbers

    @property
    def firsts(self) -> Numbers:
        """Number of each chain's first anchor."""
        return np.cumsum(self.anchors_C) - self.anchors_C

    @property
    def chain_of(self) -> Numbers:
        """The chain of each anchor."""
        return np.repeat(np.arange(len(self.anchors_C)), self.anchors_C)

    def to_bytes(self) -> bytes:
        """The file: equal tables are equal bytes."""
        head = {
            "k": self.k,
            "places": self.places,
            "chains": len(self.place_C),
            "anchors": len(self.at_N),
        }
        first_C = self.firsts
        steps = [np.diff(part, prepend=0) for part in (self.at_N, self.partner_at_N)]
        steps[1] *= 1 - 2 * self.reversed_C[self.chain_of]
        for step in steps:
            step[first_C] = 0
            assert not len(step) or 0 <= step.min() <= step.max() <= MOST_APART, "anchors are out of order"
        columns = [
            self.place_C,
            self.partner_C,
            self.reversed_C,
            self.identity_C,
            self.anchors_C,
            self.at_N[first_C],
            self.partner_at_N[first_C],
            *steps,
        ]
        kinds = zip(columns, _CHAIN_COLUMNS + _ANCHOR_COLUMNS, strict=True)
        return _FILE.to_bytes(head, (column.astype(kind) for column, kind in kinds))

    @classmethod
    def from_bytes(cls, data: bytes) -> "PartnerTable":
        """The table in ``data``. FormatError: damaged or foreign bytes, or another version."""
        head, offset = _FILE.read_head(data)
        of_chains, offset = read_columns(data, _CHAIN_COLUMNS, count=head["chains"], offset=offset)
        of_anchors, _ = read_columns(data, _ANCHOR_COLUMNS, count=head["anchors"], offset=offset)
        columns = [column.astype(np.int64) for column in (*of_chains, *of_anchors)]
        place_C, partner_C, reversed_C, identity_C, anchors_C, at_C, partner_at_C, step_N, partner_N = columns
        chain_N = np.repeat(np.arange(len(anchors_C)), anchors_C)
        first_C = np.cumsum(anchors_C) - anchors_C
        at_N, moved_N = (
            np.cumsum(steps) - np.cumsum(steps)[first_C][chain_N] for steps in (step_N, partner_N)
        )
        return cls(
            head["k"],
            tuple((assembly, contig) for assembly, contig in head["places"]),
            place_C,
            partner_C,
            reversed_C,
            identity_C,
            anchors_C,
            at_C[chain_N] + at_N,
            partner_at_C[chain_N] + (1 - 2 * reversed_C[chain_N]) * moved_N,
        )


def described(settings: dict[str, Any], data: bytes, *, base: Manifest | None = None) -> dict[str, Any]:
    """What the manifest says of the table ``data``, which was made with ``settings``; of a dataset that grew
    from ``base`` also the name of its file, since earlier manifests have theirs."""
    digest = hashlib.sha256(data).hexdigest()
    found = settings | {"bytes": len(data), "sha256": digest}
    if base is None or base.partners == found:
        return found
    return found | {"file": PARTNERS.replace(".", f"-{digest[:16]}.")}


def file_of(partners: dict[str, Any]) -> str:
    """The name of the file that ``partners`` of a manifest describe."""
    return str(partners.get("file", PARTNERS))


def settings_of(partners: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a manifest says of its partners, without what follows from the rest."""
    return partners and {key: of for key, of in partners.items() if key not in ("bytes", "sha256", "file")}


def load(manifest: Manifest, data: bytes) -> PartnerTable:
    """The table in ``data``, the file of the dataset of ``manifest``, which has partners.

    Raises:
        FormatError: it is not what the manifest says, or damaged.
    """
    assert manifest.partners, "this dataset has no partners"
    found = hashlib.sha256(data).hexdigest()
    if found != (wanted := manifest.partners["sha256"]):
        raise FormatError(
            f"{file_of(manifest.partners)} has sha256 {found[:12]}, the manifest says {wanted[:12]}"
        )
    return PartnerTable.from_bytes(data)
