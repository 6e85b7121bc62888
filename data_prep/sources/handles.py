"""What a worker needs to read a reference, and what is known of one that was found."""

import contextlib
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Haplotype:
    """Haplotype ``number`` (1 or 2) of a sample of VCF files, as edits of a reference.

    ``aliases``: the file of other names of the reference's contigs, or "". ``edits``: where the edits are
    kept on this machine. On another node they are made anew.
    """

    vcfs: tuple[str, ...]
    versions: tuple[str, ...]
    sample: str
    number: int
    reference_sha256: str
    aliases: str
    edits: str


@dataclass(frozen=True)
class Handle:
    """What a worker needs to read a reference: plain text or .2bit at ``path``, and the text's .fai at
    ``index`` ("" of a .2bit).

    ``stamp``: size and time of the file at ``path``. On another node, that file may be another or missing.
    """

    uri: str
    path: str
    index: str
    sha256: str
    stamp: str
    number_repeated: bool = False  # names that stand twice are numbered, and not refused
    haplotype: Haplotype | None = None  # what is read is this haplotype, and ``sha256`` is its


@dataclass(frozen=True)
class Located:
    """A handle, the contigs in file order (empty ones left out), and the source's version when it was read.

    ``local_stamp``: size and time of a source on this machine; they change with its bytes and not with its
    mode, owner or links, as the version may. "" of a remote source.
    """

    handle: Handle
    contigs: dict[str, int]
    empty_records: int
    version: str
    local_stamp: str


def stamp(path: str) -> str:
    """Size and time of the file at ``path``; "" if it is not there."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    return ""
