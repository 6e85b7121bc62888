"""data_prep.dataset.verify and stats: every kind of damage is found and named."""

import dataclasses
import io
import re
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from cluster.storage import store
from data_prep.dataset.export import export
from data_prep.dataset.picture import picture
from data_prep.dataset.read import load_manifest
from data_prep.dataset.stats import stats, table
from data_prep.dataset.verify import verify
from data_prep.shards import FormatError

SHARD = "train-000000.tar"


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    shutil.copytree(small, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_whole_dataset_has_no_fault_here_or_elsewhere(small: Path) -> None:
    assert verify(str(small)) == []
    for file in small.iterdir():
        store.put_file(file, f"memory://verify/{file.name}")
    assert verify("memory://verify") == []
    assert stats("memory://verify") == stats(str(small))


def test_every_flipped_bit_of_a_payload_is_found(copy: Path) -> None:
    block = load_manifest(str(copy)).shards["train"][0].blocks[1]
    data = bytearray((copy / SHARD).read_bytes())
    data[block.offset + block.size - 1] ^= 4
    (copy / SHARD).write_bytes(data)
    faults = verify(str(copy))
    assert len(faults) == 2
    assert faults[0].startswith(f"{SHARD} has sha256 ")
    assert faults[1] == f"{SHARD}, block 1 (toy:one:1024-2048): block payload does not match its crc32"
    with pytest.raises(
        FormatError, match=r"train-000000.tar, block 1: block payload does not match .*; run verify"
    ):
        stats(str(copy))


def test_a_truncated_shard(copy: Path) -> None:
    whole = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(whole[:1200])
    faults = verify(str(copy))
    assert faults[0] == f"{SHARD} has 1200 bytes, the manifest says {len(whole)}"
    assert f"{SHARD} holds 0 whole blocks, the manifest says 2" in faults
    with pytest.raises(FormatError, match=r"train-000000.tar"):
        export(str(copy), split="train", fasta=str(copy.parent / "x.fa"))
    assert not (copy.parent / "x.fa").exists()


def test_a_missing_a_stray_and_a_swapped_shard(copy: Path) -> None:
    (copy / "val-000000.tar").rename(copy / "val-000009.tar")
    assert verify(str(copy)) == [
        "val-000000.tar is missing",
        "val-000009.tar is not in the manifest; another build left it",
    ]
    shutil.copy(copy / "train-000001.tar", copy / SHARD)
    assert any(
        f"{SHARD}, block 0 (toy:one:0-1024): its header says" in fault and '"start":2048' in fault
        for fault in verify(str(copy))
    )


def test_a_wrong_count_and_a_wrong_place_in_the_manifest(copy: Path) -> None:
    manifest = load_manifest(str(copy))
    shard = manifest.shards["train"][0]
    moved = dataclasses.replace(shard.blocks[0], offset=513)
    changed = dataclasses.replace(shard, blocks=(moved, *shard.blocks[1:], shard.blocks[0]))
    shards = manifest.shards | {"train": (changed, *manifest.shards["train"][1:])}
    (copy / "manifest.json").write_bytes(dataclasses.replace(manifest, shards=shards).to_bytes())
    faults = verify(str(copy))
    size = shard.blocks[0].size
    assert faults == [
        f"{SHARD}, block 0 (toy:one:0-1024): the payload is not at bytes 513 to {513 + size}",
        f"{SHARD} holds 2 whole blocks, the manifest says 3",
        "train.bed lists other intervals than the manifest",
    ]


def test_bed_files_are_held_to_the_manifest(copy: Path) -> None:
    (copy / "val.bed").unlink()
    assert verify(str(copy)) == ["val.bed is missing"]


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(
        store.StoreError, match=r"no dataset at .*: manifest.json is missing there; a build writes it last"
    ):
        verify(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FormatError, match=r"manifest.json: not a dataset manifest"):
        verify(str(tmp_path))


def test_stats_count_what_went_in(small: Path, small_letters: dict[str, str]) -> None:
    numbers, blocks = stats(str(small))
    two = small_letters["two/b"]
    val = numbers.splits["val"]
    assert (val.contigs, val.bp, numbers.bp) == (1, len(two), sum(map(len, small_letters.values())))
    assert val.n_share == pytest.approx(1801 / len(two))
    assert val.soft_mask_share == pytest.approx(1500 / len(two))
    assert val.gc == pytest.approx(602 / (len(two) - 1801))
    assert sum(val.letters.values()) == pytest.approx(1)
    assert numbers.bytes == sum(file.stat().st_size for file in small.glob("*.tar"))
    first = next(block for block in blocks if block.contig == "two/b")
    assert (first.assembly, first.start, first.end, first.split) == ("toy", 0, 1024, "val")
    letters = two[:1024]
    assert first.n_share == pytest.approx(letters.upper().count("N") / 1024)
    assert first.soft_mask_share == pytest.approx(sum(map(str.islower, letters)) / 1024)
    assert first.gc == pytest.approx(
        sum(letters.count(x) for x in "CcGg") / (1024 - letters.upper().count("N"))
    )
    text = table(numbers)
    assert "toy: a source of 10,012 bp in 3 contigs, 1 IUPAC letters to N" in text
    assert f"{numbers.bytes_per_bp:.4f} bytes/bp" in text


@pytest.mark.usefixtures("local_ray")
def test_two_workers_find_the_same(copy: Path) -> None:
    assert stats(str(copy), workers=2) == stats(str(copy))
    for number in (0, 2):
        shard = copy / f"train-{number:06d}.tar"
        data = shard.read_bytes()
        shard.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    seen: list[tuple[str, int, int]] = []
    faults = verify(str(copy), workers=2, on_progress=lambda *at: seen.append(at))
    assert faults == verify(str(copy))
    assert [fault.split(" ")[0].rstrip(",") for fault in faults] == ["train-000000.tar"] * 2 + [
        "train-000002.tar"
    ] * 2
    assert seen[-1] == ("verify", 10_012, 10_012)


def test_the_picture_shows_every_split_and_contig(small: Path) -> None:
    numbers, blocks = stats(str(small))
    png = picture(numbers, blocks, title="small")
    assert png == picture(numbers, blocks, title="small"), "the same bytes again"
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    colours = {tuple(pixel) for pixel in (pixels * 255).round().astype(int).reshape(-1, 3)[::7].tolist()}
    assert {(0x4C, 0x72, 0xB0), (0xDD, 0x84, 0x52), (0x99, 0x99, 0x99)} <= colours, (
        "train, val and N are not all there"
    )
    many = [dataclasses.replace(block, contig=f"c{i}") for i, block in enumerate(blocks * 10)]
    height = matplotlib.image.imread(io.BytesIO(picture(numbers, many, title="many"))).shape[0]
    assert height < 2000, "at most 24 strips"


def test_a_manifest_that_is_not_of_the_plan(copy: Path) -> None:
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(
        text.replace('"max_n_fraction":1.0,"seed":0', '"max_n_fraction":1.0,"seed":4')
    )
    assert verify(str(copy)) == ["manifest.json differs from the plan in build.json in seed"]
    (copy / "build.json").write_text("{")
    assert verify(str(copy)) == ["build.json is damaged, or of an older build"]
    (copy / "build.json").unlink()
    assert verify(str(copy)) == []


def test_swapped_shards_take_a_few_lines(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.dataset.verify._SHOWN", 1)
    one, two = copy / "train-000000.tar", copy / "train-000001.tar"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    faults = verify(str(copy))
    assert len(faults) == 4
    assert any(re.fullmatch(r"train-000000.tar has \d+ more faults", fault) for fault in faults)
