"""Small phased VCF files with a reference, and what becomes of its letters, by plain strings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pysam


class Variant(NamedTuple):
    """A record of one sample: 0-based start, REF, ALT alleles, genotype as it is written."""

    contig: str
    start: int
    ref: str
    alts: tuple[str, ...]
    genotype: str


def vcf_text(variants: Sequence[Variant], contigs: Mapping[str, int], sample: str = "s") -> str:
    head = ["##fileformat=VCFv4.2", '##FORMAT=<ID=GT,Number=1,Type=String,Description="G">']
    head += [f"##contig=<ID={name},length={bp}>" for name, bp in contigs.items()]
    head.append(f"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{sample}")
    rows = [
        f"{v.contig}\t{v.start + 1}\t.\t{v.ref}\t{','.join(v.alts)}\t.\t.\t.\tGT\t{v.genotype}"
        for v in variants
    ]
    return "\n".join([*head, *rows]) + "\n"


def write_vcf(path: Path, variants: Sequence[Variant], contigs: Mapping[str, int], sample: str = "s") -> str:
    """The path of the VCF, compressed and indexed where it ends with .gz."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    plain.write_text(vcf_text(variants, contigs, sample))
    if path.suffix == ".gz":
        pysam.tabix_index(str(plain), preset="vcf", force=True, keep_original=False)
    return str(path)


def write_fasta(path: Path, contigs: Mapping[str, str]) -> str:
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in contigs.items()))
    return str(path)


def applied(letters: str, variants: Sequence[Variant], haplotype: int) -> list[str]:
    """What stands in place of each letter of a contig; together the haplotype. Records that overlap an
    earlier one are left out, as bcftools does."""
    out, frozen, inserted = list(letters), -1, False
    for variant in variants:
        allele = variant.genotype.replace("/", "|").split("|")[haplotype - 1]
        if allele in ("0", "."):
            continue
        alt, ref = variant.alts[int(allele) - 1], variant.ref
        follows = variant.start == frozen and _is_mere_indel(ref, alt) and not inserted
        if variant.start <= frozen and not follows:
            continue
        frozen, inserted = variant.start + len(ref) - 1, len(alt) > len(ref)
        if alt[0] != ref[0]:
            out[variant.start] = alt[0]
        for i in range(1, len(ref)):
            out[variant.start + i] = alt[i] if i < len(alt) else ""
        out[frozen] += alt[len(ref) :]
    return out


def _is_mere_indel(ref: str, alt: str) -> bool:
    """Whether the shorter one is the longer one without some letters behind the first."""
    short, long = sorted((ref, alt), key=len)
    gap = len(long) - len(short)
    return gap > 0 and any(long[:i] + long[i + gap :] == short for i in range(1, len(short) + 1))


def complex_variants(rng: np.random.Generator, letters: str) -> list[Variant]:
    """Records of contig c with two alleles that are anything, up to two at one place."""
    found = []
    for at in np.repeat(np.flatnonzero(rng.random(len(letters)) < 0.15), 2).tolist():
        ref = letters[at : at + int(rng.integers(1, 5))]
        alts = ["".join(rng.choice(list("ACGT"), int(rng.integers(1, 5)))) for _ in range(2)]
        if rng.random() < 0.8 and len({ref, *alts}) == 3:
            found.append(Variant("c", at, ref, tuple(alts), "|".join(map(str, rng.integers(0, 3, 2)))))
    return found


def random_variants(
    rng: np.random.Generator, letters: str, *, contig: str = "c", rate: float = 0.1, longest: int = 6
) -> list[Variant]:
    """Substitutions, MNVs, insertions and deletions of a contig, in order; some overlap."""
    found, upper = [], letters.upper()
    for at in np.flatnonzero(rng.random(len(letters)) < rate).tolist():
        kind, size = rng.integers(4), int(rng.integers(1, longest + 1))
        new = "".join(rng.choice(list("ACGT"), size))
        if kind == 0:
            ref, alt = upper[at], "ACGT"[("ACGT".index(upper[at]) + int(rng.integers(1, 4))) % 4]
        elif kind == 1:
            ref, alt = upper[at], upper[at] + new
        elif kind == 2:
            ref, alt = upper[at : at + 1 + size], upper[at]
        else:
            ref = upper[at : at + size]
            alt = "".join("ACGT"[("ACGT".index(base) + 1) % 4] for base in ref)
        if ref != alt:
            genotype = str(rng.choice(["0|1", "1|0", "1|1", "0|0", ".|1", ".|.", "1/1"]))
            found.append(Variant(contig, at, ref, (alt,), genotype))
    return found
