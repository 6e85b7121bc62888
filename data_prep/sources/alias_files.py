"""Files that say which names of contigs mean the same -> AliasTable.

Known are NCBI's ``*_assembly_report.txt``, the ``sequence_report.jsonl`` of its datasets packages, UCSC's
``chromAlias.txt``, and any table of two or more columns whose rows are names of one sequence each.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from configs import redact
from configs.values import decode
from data_prep.sources import compression, packages
from data_prep.sources.aliases import AliasTable

# Each way of naming, as the two formats of NCBI call it, and the sequence's role.
_REPORT = ("Sequence-Name", "GenBank-Accn", "RefSeq-Accn", "UCSC-style-name")
_JSON = ("sequenceName", "genbankAccession", "refseqAccession", "ucscStyleName")
_ROLES = ("Sequence-Role", "role")
_NONE = ("na", "")
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_aliases(uri: str) -> AliasTable:
    """The table in the file at ``uri``, plain or compressed, or in the report of an NCBI datasets package.

    Raises:
        StoreError: it cannot be read.
        ValueError: damaged, no text, or a row that is none; the message names the file and the line.
    """
    where = redact(uri)
    chunks = packages.report_chunks(uri) if packages.is_package(uri) else compression.plain(uri)
    data = b"".join(chunks)
    try:
        lines = [line.rstrip() for line in _LINE_END.split(decode(data))]
    except ValueError as fault:
        raise ValueError(f"{where} is no table of contig names: {fault}") from fault
    first = next((line for line in lines if line), "")
    if first.startswith("{"):
        names, roles = _of_json(lines, where)
    elif header := _report_header(lines):
        names, roles = _of_report(lines, header, where)
    else:
        names, roles = list(_of_table(lines, where)), []
    if not names:
        raise ValueError(f"{where} has no row of contig names")
    return AliasTable(where, hashlib.sha256(data).hexdigest(), tuple(names), tuple(roles))


def _report_header(lines: Iterable[str]) -> list[str] | None:
    for line in lines:
        header = line.lstrip("# ").split("\t")
        if line.startswith("#") and _REPORT[0] in header:
            return header
    return None


def _of_report(
    lines: Sequence[str], header: Sequence[str], where: str
) -> tuple[list[tuple[str, ...]], list[str]]:
    missing = [name for name in (*_REPORT[:3], _ROLES[0]) if name not in header]
    if missing:
        raise ValueError(f"{where}: the assembly report has no column {missing[0]}; get it again")
    wanted = [header.index(name) for name in _REPORT if name in header]
    names, roles = [], []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        words = line.split("\t")
        if len(words) < len(header):
            raise ValueError(
                f"{where}, line {number}: {len(words)} columns, the header has {len(header)}; get it again"
            )
        names.append(_known(words[column] for column in wanted))
        roles.append(words[header.index(_ROLES[0])])
    return names, roles


def _of_json(lines: Sequence[str], where: str) -> tuple[list[tuple[str, ...]], list[str]]:
    names, roles = [], []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            names.append(_known(str(row.get(key) or "") for key in _JSON))
            roles.append(str(row.get(_ROLES[1], "")))
        except (ValueError, AttributeError):
            raise ValueError(
                f"{where}, line {number}: is no entry of a sequence report (JSON lines); get it again"
            ) from None
    return names, roles


def _known(names: Iterable[str]) -> tuple[str, ...]:
    return tuple("" if name.strip() in _NONE else name.strip() for name in names)


def _of_table(lines: Sequence[str], where: str) -> Iterator[tuple[str, ...]]:
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        words = tuple(word.strip() for word in line.split("\t")) if "\t" in line else tuple(line.split())
        if len(words) < 2:
            raise ValueError(
                f"{where}, line {number}: needs two or more names of one contig, with tabs between, not "
                f"{line[:60]!r}"
            )
        yield words
