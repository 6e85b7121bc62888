"""Haplotypes of phased VCF files: letters against plain strings and bcftools, the map, every refusal."""

import gzip
import re
import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pysam
import pysam.bcftools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage.store import StoreError
from data_prep.sources import edits as edits_module
from data_prep.sources import reference as reference_module
from data_prep.sources.edits import Columns, ContigEdits, Edits
from data_prep.sources.reference import Located, changed, fetch, haplotypes, locate
from tests.haplotypes import (
    Variant,
    applied,
    complex_variants,
    random_variants,
    vcf_text,
    write_fasta,
    write_vcf,
)

V = partial(Variant, "c")


def made(
    folder: Path, letters: str, variants: Sequence[Variant], *, name: str = "x.vcf", contig: str = "c"
) -> list[Located]:
    """Both haplotypes of sample s."""
    fasta = write_fasta(folder / "x.fa", {contig: letters})
    vcf = write_vcf(folder / name, variants, {"c": len(letters)})
    return haplotypes(locate(fasta), [vcf], [("s", 1), ("s", 2)])


def text(located: Located, contig: str = "c") -> str:
    return fetch(located.handle, contig, 0, located.contigs[contig]).decode()


def contig_edits(located: Located, contig: str = "c") -> ContigEdits:
    assert located.handle.haplotype
    return Edits(located.handle.haplotype.edits).of(contig)


@pytest.mark.parametrize("seed", range(20))
def test_letters_are_those_of_plain_strings_and_of_bcftools(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    letters = "".join(rng.choice(list("ACGT"), 400))
    variants = (
        random_variants(rng, letters, rate=(0.02, 0.1, 0.3)[seed % 3])
        if seed % 4
        else complex_variants(rng, letters)
    )
    located = made(tmp_path, letters, variants, name="x.vcf.gz")
    for number, one in enumerate(located, 1):
        expected = "".join(applied(letters, variants, number))
        assert text(one) == expected
        assert one.contigs == {"c": len(expected)}
        theirs = pysam.bcftools.consensus(
            "-H", str(number), "-f", str(tmp_path / "x.fa"), str(tmp_path / "x.vcf.gz"), catch_stdout=True
        )
        assert "".join(theirs.split("\n")[1:]) == expected


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_stretch_and_the_map_in_both_directions(data: st.DataObject) -> None:
    bp = data.draw(st.integers(1, 40))
    letters = data.draw(st.text("acgtACGT", min_size=bp, max_size=bp)).encode()
    columns, at = Columns(), 0
    while at < bp and data.draw(st.booleans()):
        start = data.draw(st.integers(at, bp))
        end = data.draw(st.integers(start, min(bp, start + 5)))
        new = data.draw(st.text("ACGT", min_size=start == end, max_size=5)).encode()
        columns.add(start, end, new)
        at = end + (start == end)
    edits = ContigEdits(
        *(np.array(part, np.int64) for part in (columns.start, columns.end, columns.at)),
        np.frombuffer(bytes(columns.letters), np.uint8),
    )
    pieces = list(zip(columns.start, columns.end, columns.at[:-1], columns.at[1:], strict=True))
    whole, done, map_to = b"", 0, {0: 0}
    for start, end, low, high in pieces:
        for edge in range(done, start):
            map_to.setdefault(edge, len(whole) + edge - done)
        whole += letters[done:start]
        new = bytes(columns.letters[low:high])
        for edge in range(start, end):
            map_to.setdefault(edge, len(whole) + min(edge - start, len(new)))
        whole, done = whole + new, end
        map_to[end] = len(whole) if end else 0
    for edge in range(done, bp + 1):
        map_to.setdefault(edge, len(whole) + edge - done)
    whole += letters[done:]
    read = lambda low, high: letters[low:high]  # noqa: E731
    for start in range(len(whole)):
        for end in range(start + 1, len(whole) + 1):
            assert edits.fetch(read, start, end) == whole[start:end]
    lifted = edits.lift(np.arange(bp + 1))
    assert lifted.tolist() == [map_to[edge] for edge in range(bp + 1)]
    back = edits.unlift(np.arange(len(whole) + 1))
    assert (np.diff(back) >= 0).all() and back[0] == 0 and (not whole or back[-1] == bp)
    aligned = edits.aligned(bp)
    for one, other, length in aligned.tolist():
        assert (lifted[one : one + length] == np.arange(other, other + length)).all() or one == 0
        inside = np.arange(one + 1, one + length)
        assert (edits.unlift(lifted[inside]) == inside).all()
    changed_places, new_letters = edits.substituted()
    for place, letter in zip(changed_places.tolist(), new_letters.tolist(), strict=True):
        (row,) = [r for r in aligned.tolist() if r[0] <= place < r[0] + r[2]]
        assert whole[row[1] + place - row[0]] == letter


def test_masks_ambiguity_and_what_is_counted(tmp_path: Path) -> None:
    letters = "acGTNRacgtACGTacgtAC"
    variants = [
        V(0, "AC", ("TG",), "1|0"),  # both soft-masked
        V(3, "T", ("TAA",), "1|1"),  # inserted behind a letter that is not
        V(4, "N", ("A",), "1|0"),
        V(5, "A", ("C",), "1|0"),  # the reference has R there
        V(7, "C", ("CTT",), "1|0"),  # behind one that is
        V(9, "TAC", ("T",), "1|0"),
        V(10, "A", ("G",), "1|0"),  # within the deletion
        V(12, "G", ("*", "<DEL>"), "1|2"),
        V(13, "T", ("C",), ".|."),
        V(14, "A", ("G",), "1"),
        V(16, "G", ("GA",), "0|1"),
    ]
    one, two = made(tmp_path, letters, variants)
    assert text(one) == "tgGTAAACacttgtGTgcgtAC"
    assert text(two) == "acGTAANRacgtACGTacgatAC"
    assert one.handle.haplotype and two.handle.haplotype
    counts = [Edits(of.handle.haplotype.edits).counts for of in (one, two) if of.handle.haplotype]
    assert counts == [
        {"applied": 7, "overlapping": 1, "other": 1, "missing": 1},
        {"applied": 2, "other": 1, "missing": 1, "haploid": 1},
    ]


def test_the_digest_is_of_reference_and_edits_alone(tmp_path: Path) -> None:
    letters = "ACGTACGTAC"
    first = made(tmp_path, letters, [V(2, "G", ("T",), "1|0")])
    again = made(tmp_path, letters, [V(1, "CG", ("CT",), "1/1"), V(5, "C", ("C",), "0|0")], name="y.vcf.gz")
    assert first[0].handle.sha256 == again[0].handle.sha256, "the same edit, written otherwise"
    assert first[0].handle.sha256 != first[1].handle.sha256
    other = made(tmp_path, letters.lower(), [V(2, "G", ("T",), "1|0")], name="z.vcf")
    assert other[0].handle.sha256 != first[0].handle.sha256


def test_two_contigs_in_another_order_two_files_bcf_and_other_names(tmp_path: Path) -> None:
    contigs = {"chr1": "ACGTACGT", "chr2": "GGGGCCCC"}
    fasta = locate(write_fasta(tmp_path / "x.fa", contigs))
    one, two = Variant("1", 1, "C", ("CA",), "1|0"), Variant("2", 0, "GG", ("G",), "1|1")
    sizes = {"1": 8, "2": 8}
    whole = write_vcf(tmp_path / "a.vcf", [two, one], sizes)
    with (
        pysam.VariantFile(whole) as source,
        pysam.VariantFile(str(tmp_path / "a.bcf"), "wb", header=source.header) as target,
    ):
        for record in source:
            target.write(record)
    parts = [write_vcf(tmp_path / "b1.vcf.gz", [one], sizes), str(tmp_path / "b2.vcf.gz")]
    Path(parts[1]).write_bytes(gzip.compress(vcf_text([two], sizes).encode()))
    digests = set()
    for vcfs in ([whole], [str(tmp_path / "a.bcf")], parts, parts[::-1]):
        (found,) = haplotypes(fasta, vcfs, [("s", 1)])
        assert (text(found, "chr1"), text(found, "chr2")) == ("ACAGTACGT", "GGGCCCC")
        digests.add(found.handle.sha256)
    assert len(digests) == 1


REFUSED = {
    "unphased": (
        [V(2, "G", ("T",), "0/1"), V(4, "A", ("T",), "1/1"), V(6, "G", ("T",), "1/0")],
        r"^2 heterozygous genotypes are not phased \(the first: .*x\.vcf: c:3, sample s\), so no haplotype",
    ),
    "half": ([V(2, "G", ("T",), "./1")], "1 heterozygous genotypes are not phased"),
    "ref": (
        [V(2, "GA", ("T",), "1|0")],
        "x.vcf: c:3: REF has another letter than the reference at c:4; is the VCF",
    ),
    "beyond": (
        [V(9, "CA", ("C",), "1|0")],
        r"c:10 \(REF of 2 letters\) lies beyond the 10 bp of c; is the VCF of",
    ),
    "order": (
        [V(5, "C", ("T",), "1|0"), V(2, "G", ("T",), "1|0")],
        "is not sorted: c:3 stands after c:6; sort it",
    ),
    "twice": (
        [V(2, "G", ("T",), "1|0"), Variant("d", 0, "A", ("T",), "1|0"), V(5, "C", ("T",), "1|0")],
        "records of c stand in more than one place; sort the VCF",
    ),
    "elsewhere": ([Variant("d", 0, "A", ("T",), "1|0")], "x.vcf: no record is on a contig of .*x.fa"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_vcf_files_that_are_refused(tmp_path: Path, case: str) -> None:
    variants, message = REFUSED[case]
    fasta = locate(write_fasta(tmp_path / "x.fa", {"c": "ACGTACGTAC"}))
    vcf = write_vcf(tmp_path / "x.vcf", variants, {"c": 10, "d": 10})
    with pytest.raises(ValueError, match=message):
        haplotypes(fasta, [vcf], [("s", 1), ("s", 2)], cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*edits*")), "nothing half-written"


def test_what_is_no_vcf_or_has_no_such_sample(tmp_path: Path) -> None:
    fasta = locate(write_fasta(tmp_path / "x.fa", {"c": "ACGTACGTAC", "1": "A", "chr1": "A"}))
    vcf = write_vcf(tmp_path / "x.vcf", [V(2, "G", ("T",), "1|0")], {"c": 10})
    with pytest.raises(ValueError, match=r"x\.vcf has no sample HG002; it has s$"):
        haplotypes(fasta, [vcf], [("HG002", 1)])
    (tmp_path / "y.vcf").write_text("hello\n")
    with pytest.raises(ValueError, match=r"y\.vcf is no VCF or BCF, or is damaged \(.+\); get it again"):
        haplotypes(fasta, [str(tmp_path / "y.vcf")], [("s", 1)])
    many = [V(i, "ACGTACGTAC"[i], ("N",), "0|0") for i in range(10) for _ in range(999)]
    whole = gzip.compress(vcf_text(many, {"c": 10}).encode())
    (tmp_path / "z.vcf.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"z\.vcf\.gz is a damaged gzip file"):
        haplotypes(fasta, [str(tmp_path / "z.vcf.gz")], [("s", 1)])
    packed = Path(write_vcf(tmp_path / "w.vcf.gz", many, {"c": 10}))
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"w\.vcf\.gz is no VCF or BCF, or is damaged"):
        haplotypes(fasta, [str(packed)], [("s", 1)])
    with pytest.raises(StoreError, match=r"absent\.vcf"):
        haplotypes(fasta, [str(tmp_path / "absent.vcf")], [("s", 1)])
    ambiguous = write_vcf(tmp_path / "m.vcf", [Variant("Chr1", 0, "A", ("T",), "1|0")], {"Chr1": 1})
    with pytest.raises(ValueError, match=r"contig 'Chr1' may mean 1 or chr1 of the reference"):
        haplotypes(fasta, [ambiguous], [("s", 1)])


def test_files_that_share_a_contig_are_to_be_joined(tmp_path: Path) -> None:
    """As where substitutions and indels have files of their own."""
    letters = "ACGTACGTAC"
    fasta = locate(write_fasta(tmp_path / "x.fa", {"chrc": letters}))
    one, two = V(2, "G", ("T",), "1|0"), V(5, "C", ("CA",), "1|0")
    vcfs = [write_vcf(tmp_path / f"{v.start}.vcf.gz", [v], {"c": 10}) for v in (one, two)]
    message = (
        f"{vcfs[0]} and {vcfs[1]} both have records of chrc, but the records of a contig are read from one "
        "file; join the files (bcftools concat -a)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        haplotypes(fasta, vcfs, [("s", 1)])
    joined = tmp_path / "joined.vcf"
    joined.write_text(pysam.bcftools.concat("-a", *vcfs, catch_stdout=True))
    (found,) = haplotypes(fasta, [str(joined)], [("s", 1)])
    assert text(found, "chrc") == "".join(applied(letters, [one, two], 1))


def test_another_node_makes_the_edits_anew_and_notices_another_vcf(tmp_path: Path) -> None:
    letters = "ACGTACGTAC"
    one, _ = made(tmp_path, letters, [V(2, "G", ("T",), "1|0")])
    assert one.handle.haplotype and not changed(one)
    Path(one.handle.haplotype.edits).unlink()
    reference_module._open.cache_clear()
    assert text(one) == "ACTTACGTAC"
    Path(one.handle.haplotype.edits).unlink()
    reference_module._open.cache_clear()
    write_vcf(tmp_path / "x.vcf", [V(2, "G", ("A",), "1|0")], {"c": 10})
    with pytest.raises(
        ValueError, match=r"haplotype 1 of s is another one than the build was planned with: .*x\.vcf"
    ):
        text(one)
    assert changed(one)


def test_memory_is_that_of_a_stretch_and_a_deletion_is_not_read(tmp_path: Path) -> None:
    count = 200_000
    columns = Columns()
    for i in range(count):
        columns.add(10 * i, 10 * i + 1, b"TT")
    columns.add(10 * count, 60 * count, b"")
    path = tmp_path / "x.edits"
    with open(path, "wb") as file:
        writer = edits_module.Writer(file)
        writer.write("c", columns)
        writer.finish(reference_sha256="0", counts={})
    del columns, writer
    most = 0

    def read(low: int, high: int) -> bytes:
        nonlocal most
        most = max(most, high - low)
        return bytes(high - low)

    edits = Edits(str(path))
    genome = edits_module.EditedGenome(edits, lambda contig, low, high: read(low, high))
    bp = edits.contigs({"c": 70 * count})["c"]
    assert bp == 70 * count + count - 50 * count
    genome.fetch("c", 0, 10)
    tracemalloc.start()
    for start in range(0, bp - 4096, bp // 50):
        assert len(genome.fetch("c", start, start + 4096)) == 4096
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most <= 8192 and peak < 1 << 20, (most, peak)
