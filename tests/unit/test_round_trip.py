"""export(build(x)) = x: generated references, and the real ones."""

import gzip
import hashlib
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import DataConfig
from data_prep.dataset.build import build
from data_prep.dataset.export import export
from data_prep.dataset.read import load_manifest
from data_prep.dataset.verify import verify
from data_prep.shards import SPLITS
from data_prep.sources.reference import fetch
from data_prep.sources.survey import prepare

pytestmark = pytest.mark.usefixtures("local_ray")
_AMBIGUOUS = re.compile(b"[RYSWKMBDHV]", re.IGNORECASE)


def as_kept(letters: bytes) -> bytes:
    """Ambiguity letters as N of the same case, U as T."""
    text = _AMBIGUOUS.sub(lambda found: b"n" if found[0].islower() else b"N", letters)
    return text.replace(b"U", b"T").replace(b"u", b"t")


def exported(uri: Path) -> dict[tuple[str, str], dict[int, bytes]]:
    """(assembly, contig) -> start -> letters, of all splits."""
    found: dict[tuple[str, str], dict[int, bytes]] = {}
    manifest = load_manifest(str(uri))
    for split in SPLITS:
        if not manifest.shards[split]:
            continue
        export(str(uri), split=split, fasta=str(uri / f"{split}.fa"))
        for record in (uri / f"{split}.fa").read_bytes().split(b">")[1:]:
            head, _, body = record.partition(b"\n")
            assembly, rest = head.decode().split(":", 1)
            contig, place = rest.rsplit(":", 1)
            start, end = map(int, place.split("-"))
            letters = body.replace(b"\n", b"")
            assert len(letters) == end - start
            assert start not in found.setdefault((assembly, contig), {})
            found[assembly, contig][start] = letters
    return found


def joined(pieces: dict[int, bytes]) -> bytes:
    """The pieces end to end, which must leave no gap."""
    text = b""
    for start in sorted(pieces):
        assert start == len(text)
        text += pieces[start]
    return text


words = st.sampled_from(["ACGT", "acgt", "N", "n", "RYK", "GATTACA", "U", "tta"])
contig_letters = st.lists(st.tuples(words, st.integers(1, 700)), min_size=1, max_size=8).map(
    lambda parts: "".join(text * times for text, times in parts).encode()
)


@settings(max_examples=12, deadline=None)
@given(
    contigs=st.lists(contig_letters, min_size=1, max_size=4),
    width=st.integers(1, 200),
    end=st.sampled_from([b"\n", b"\r\n"]),
    block_bp=st.sampled_from([1024, 2048, 65536]),
    shard_bp=st.sampled_from([1 << 16, 1 << 20]),
    val=st.booleans(),
    packed=st.booleans(),
)
def test_export_of_build_is_the_reference(
    contigs: list[bytes], width: int, end: bytes, block_bp: int, shard_bp: int, val: bool, packed: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = b"".join(
            b">c%d of some" % i
            + end
            + b"".join(letters[at : at + width] + end for at in range(0, len(letters), width))
            for i, letters in enumerate(contigs)
        )
        fasta = folder / ("x.fa.gz" if packed else "x.fa")
        fasta.write_bytes(gzip.compress(text) if packed else text)
        built = build(
            DataConfig.model_validate(
                {
                    "references": [{"name": "x", "uri": str(fasta)}],
                    "output": str(folder / "o"),
                    "block_bp": block_bp,
                    "shard_bp": shard_bp,
                    "max_n_fraction": 1,
                    "split": {"val": ["c0"] if val and len(contigs) > 1 else 0, "leakage": "off"},
                }
            )
        )
        assert {contig: joined(parts) for (_, contig), parts in exported(folder / "o").items()} == {
            f"c{i}": as_kept(letters) for i, letters in enumerate(contigs)
        }
        assert built.manifest.sources[0].iupac_to_n == sum(
            len(_AMBIGUOUS.findall(letters)) for letters in contigs
        )
        assert verify(str(folder / "o")) == []


@pytest.mark.timeout(300)
def test_the_real_genomes_come_back_to_the_letter(dna_data: Path, tmp_path: Path) -> None:
    """All of them, FASTA and .2bit, as assemblies of one dataset, held out by blocks."""
    files = sorted([*(dna_data / "genomes").glob("*.gz"), *(dna_data / "genomes").glob("*.2bit")])
    names = {re.sub(r"[^A-Za-z0-9._+-]", "_", file.name): file for file in files}
    build(
        DataConfig.model_validate(
            {
                "references": [{"name": name, "uri": str(file)} for name, file in names.items()],
                "output": str(tmp_path / "o"),
                "max_n_fraction": 1,
                "split": {"val": 0.1, "test": 0.05, "gap": 0},
                "workers": 2,
            }
        )
    )
    assert verify(str(tmp_path / "o"), workers=2) == []
    manifest = load_manifest(str(tmp_path / "o"))
    assert all(manifest.bp(split) > 1_000_000 for split in SPLITS)
    found = exported(tmp_path / "o")
    ambiguous = dict.fromkeys(names, 0)
    for name, file in names.items():
        if file.suffix == ".gz":
            text = gzip.decompress(file.read_bytes())
            records = [record.split(b"\n", 1) for record in text.split(b">")[1:]]
            source = {head.split()[0].decode(): b"".join(body.split()) for head, body in records}
            assert (
                next(s.sha256 for s in manifest.sources if s.name == name) == hashlib.sha256(text).hexdigest()
            )
        else:
            reference = prepare(str(file))
            source = {c: fetch(reference.handle, c, 0, bp) for c, bp in reference.contigs.items()}
        for contig, letters in source.items():
            ambiguous[name] += len(_AMBIGUOUS.findall(letters))
            assert joined(found.pop((name, contig))) == as_kept(letters), f"{name}, {contig}"
    assert found == {}
    assert {source.name: source.iupac_to_n for source in manifest.sources} == ambiguous
    assert sum(ambiguous.values()) > 0, "some of the real genomes have ambiguity letters"
