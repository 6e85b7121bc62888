"""data_prep.dataset.write and read: a shard is a WebDataset tar whose bytes depend on its blocks alone."""

import hashlib
import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.blocks import pack, unpack
from data_prep.dataset.read import samples
from data_prep.dataset.write import write_shard
from data_prep.shards import BlockHeader, FormatError
from data_prep.split.intervals import Span

ROOT = Path(__file__).parents[2]
SPANS = [Span("toy", "a/b c", start, start + 1000) for start in (0, 1000, 5000)]
PAYLOADS = [pack(np.full(1000, code, np.uint8), np.zeros(1000, np.bool_)) for code in (0, 3, 4)]


def test_offsets_digest_and_members(tmp_path: Path) -> None:
    uri = str(tmp_path / "train-000000.tar")
    shard = write_shard(uri, zip(SPANS, PAYLOADS, strict=True))
    data = Path(uri).read_bytes()
    assert (shard.name, shard.bytes) == ("train-000000.tar", len(data))
    assert shard.sha256 == hashlib.sha256(data).hexdigest()
    assert [data[b.offset : b.offset + b.size] for b in shard.blocks] == PAYLOADS
    with tarfile.open(uri) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{i:06d}.{ext}" for i in range(3) for ext in ("2bit", "json")]
    assert {(m.mtime, m.uname, m.gname, m.uid, m.gid, m.mode) for m in members} == {
        (0, "dna", "dna", 0, 0, 0o444)
    }


def test_same_blocks_same_bytes_at_another_time(tmp_path: Path) -> None:
    one = write_shard(str(tmp_path / "x" / "s.tar"), zip(SPANS, PAYLOADS, strict=True))
    time.sleep(1.1)
    two = write_shard(str(tmp_path / "y" / "s.tar"), zip(SPANS, PAYLOADS, strict=True))
    assert one == two


def test_webdataset_reads_it_back(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "s.tar"), zip(SPANS, PAYLOADS, strict=True))
    with open(tmp_path / "s.tar", "rb") as file:
        found = list(samples(file, name="s.tar"))
    assert [payload for _, payload in found] == PAYLOADS
    assert found[2][0] == BlockHeader(1, "toy", "a/b c", 5000, 6000).to_bytes()
    assert unpack(found[1][1])[0].tolist() == [3] * 1000


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def blocks():  # type: ignore[no-untyped-def]
        yield SPANS[0], PAYLOADS[0]
        raise ValueError("a bad letter")

    with pytest.raises(ValueError, match="a bad letter"):
        write_shard(str(tmp_path / "s.tar"), blocks())
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_shard(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "s.tar"), zip(SPANS, PAYLOADS, strict=True))
    data = (tmp_path / "s.tar").read_bytes()
    with pytest.raises(FormatError, match=r"s\.tar is not a whole tar"):
        list(samples(io.BytesIO(data[:900]), name="s.tar"))
    with pytest.raises(FormatError, match=r"s\.tar is not a whole tar"):
        list(samples(io.BytesIO(b"\x01" * 2000), name="s.tar"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("000000.json"), io.BytesIO())
    with pytest.raises(FormatError, match=r"s.tar: sample 000000 has no .2bit"):
        list(samples(io.BytesIO(buffer.getvalue()), name="s.tar"))


def test_no_worker_of_a_build_imports_torch() -> None:
    code = (
        "import importlib.util, sys, data_prep.__main__\n"
        "print('torch' in sys.modules, importlib.util.find_spec('torch') is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == "False True\n", (
        "it costs each of them 2 s and 180 MB; and it can be imported afterwards"
    )
