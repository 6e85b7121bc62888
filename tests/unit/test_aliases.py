"""data_prep.sources.aliases: another spelling of a contig is found where only one is meant."""

import pytest

from data_prep.sources.aliases import Renamed

UCSC = {"chr1": 9, "chrX": 9, "chrM": 9}
ENSEMBL = {"1": 9, "X": 9, "MT": 9}


@pytest.mark.parametrize(
    ("name", "contigs", "found"),
    [
        ("chr1", UCSC, "chr1"),
        ("1", UCSC, "chr1"),
        ("Chr1", UCSC, "chr1"),
        ("chr1", ENSEMBL, "1"),
        ("X", UCSC, "chrX"),
        ("x", UCSC, None),
        ("MT", UCSC, "chrM"),
        ("M", UCSC, "chrM"),
        ("chrMT", UCSC, "chrM"),
        ("chrM", ENSEMBL, "MT"),
        ("M", ENSEMBL, "MT"),
        ("Mito", {"chrmt": 9}, None),
        ("chrI", {"I": 9, "Mito": 9}, "I"),
        ("chrM", {"I": 9, "Mito": 9}, "Mito"),
        ("2", UCSC, None),
        ("chr", {"": 9, "1": 9}, None),
        ("", UCSC, None),
        # exact first
        ("1", {"1": 9, "chr1": 9}, "1"),
        ("chr1", {"1": 9, "chr1": 9}, "chr1"),
        # never one of two
        ("Chr1", {"1": 9, "chr1": 9}, None),
        ("M", {"MT": 9, "chrM": 9}, None),
    ],
)
def test_what_a_name_means(name: str, contigs: dict[str, int], found: str | None) -> None:
    assert Renamed(contigs).find(name) == found


def test_what_was_renamed_is_said_in_one_sentence() -> None:
    renamed = Renamed(UCSC)
    assert renamed.find("chr1") == "chr1" and renamed.find("chrQ") is None
    assert renamed.sentence("the BED") == ""
    renamed.find("1")
    assert renamed.sentence("x.vcf") == "contig 1 of x.vcf was read as chr1 of the reference"
    renamed.find("MT")
    renamed.find("1")
    assert renamed.sentence("x.vcf") == "contigs 1, MT of x.vcf were read as chr1, chrM of the reference"
    many = Renamed({f"chr{i}" for i in range(1, 9)})
    for i in range(1, 9):
        many.find(str(i))
    assert many.sentence("x.bed") == (
        "contigs 1, 2, 3, 4, 5 and 3 more of x.bed were read as chr1, chr2, chr3, chr4, chr5 ... of the "
        "reference"
    )
