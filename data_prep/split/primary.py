"""Which contigs are the primary ones: chromosomes and organelles, not alternate copies or loose pieces."""

import re
from collections.abc import Mapping

from data_prep.sources.aliases import Renamed
from data_prep.split.intervals import some

PRIMARY = "primary"
_ROLE = "assembled-molecule"  # NCBI's word
_NUMBER = r"(\d{1,2}[LRAB]?|[IVX]+|[XYZW]|M|MT|Mt|Mito|MtDNA|Pt)"
_STYLES = {  # how the names of primary contigs look
    "UCSC": re.compile(f"chr{_NUMBER}"),
    "Ensembl": re.compile(_NUMBER),
    "RefSeq": re.compile(r"NC_\d+\.\d+"),
}


def primary(contigs: Mapping[str, int], names: Renamed, *, where: str) -> tuple[dict[str, int], str]:
    """The primary ones of ``contigs``, and by what they were told: the roles in the file of ``names``, else
    how their names look, in the one style (UCSC's, Ensembl's, RefSeq's) that has most bp; names of the file
    count where the contigs' own look like none.

    Raises:
        ValueError: none is recognised.
    """
    if names.roles:
        found = {contig: bp for contig, bp in contigs.items() if names.roles.get(contig) == _ROLE}
        if not found:
            raise ValueError(
                f"{where}: contigs: {PRIMARY} finds none: its file of aliases has no {_ROLE} among them (it "
                f"has {some(filter(None, names.roles.values())) or 'no roles'})"
            )
        return found, f"by the role {_ROLE}"
    for called in ({contig: contig for contig in contigs}, *names.columns):
        by_style = {
            style: {c: bp for c, bp in contigs.items() if pattern.fullmatch(called.get(c, ""))}
            for style, pattern in _STYLES.items()
        }
        style = max(by_style, key=lambda style: sum(by_style[style].values()))
        if by_style[style]:
            return by_style[style], f"by {style}'s names"
    raise ValueError(
        f"{where}: contigs: {PRIMARY} recognises none of the names ({some(contigs)}); give an assembly "
        "report as aliases, or name the contigs"
    )
