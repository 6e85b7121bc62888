"""The record of what a rank does, as its launcher reads it: of a rank that works, hangs or is dead."""

import builtins
import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.process.heartbeat import ENV, SIZE, Heartbeat, HeartbeatRecord, heartbeat, read
from cluster.storage import store
from cluster.storage.retry import StoreError

RANK = """
import sys
from cluster.process.heartbeat import heartbeat
heartbeat.step(7)
heartbeat.saved(5)
with heartbeat.inside("all_reduce"):
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_the_record_of_another_process_is_read_while_it_hangs_and_when_it_is_dead(tmp_path: Path) -> None:
    path, before = tmp_path / "rank-0", time.time()
    environment = os.environ | {ENV: str(path)}
    with subprocess.Popen(
        [sys.executable, "-c", RANK], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"inside\n"
        beat = read(path)
        assert (beat.step, beat.saved, beat.collectives, beat.inside, beat.label) == (
            7,
            5,
            1,
            True,
            "all_reduce",
        )
        assert beat.describe() == "step 7, inside all_reduce (collective 1)"
        assert before <= beat.at <= time.time()
        assert read(path) == beat, "it hangs: nothing moves"
        process.kill()
        process.wait()
        process.stdin.close()
    assert read(path) == beat


def test_labels_within_labels(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "x")
    told = [heartbeat.read().describe()]
    heartbeat.step(3)
    with heartbeat.inside("backward", phase=True):
        told.append(heartbeat.read().describe())
        with heartbeat.inside("all_gather"):
            told.append(heartbeat.read().describe())
        told.append(heartbeat.read().describe())
    told.append(heartbeat.read().describe())
    with pytest.raises(KeyError), heartbeat.inside("broadcast"):
        raise KeyError
    told.append(heartbeat.read().describe())
    assert told == [
        "step 0, before any collective (collective 0)",
        "step 3, inside backward (collective 1)",
        "step 3, inside all_gather (collective 2)",
        "step 3, inside backward (collective 2, last issued all_gather)",
        "step 3, after backward (collective 2, last issued all_gather)",
        "step 3, after broadcast (collective 3)",
    ]
    assert read(tmp_path / "x") == heartbeat.read()


def test_everything_that_is_told_moves(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "x")
    moves = [heartbeat.read().moves]
    heartbeat.step(1)
    moves.append(heartbeat.read().moves)
    with heartbeat.inside("all_reduce"):
        moves.append(heartbeat.read().moves)
    moves.append(heartbeat.read().moves)
    heartbeat.saved(1)
    moves.append(heartbeat.read().moves)
    thread = threading.Thread(target=heartbeat.advance)  # of work in the background, too
    thread.start()
    thread.join()
    moves.append(heartbeat.read().moves)
    assert moves == sorted(set(moves)), "a launcher that sees no move takes the rank for one that hangs"


@pytest.mark.parametrize("base", ["memory://beats", ""])
def test_each_answer_of_a_store_is_progress_but_what_keeps_a_lease_is_not(base: str, tmp_path: Path) -> None:
    """Uploads, downloads, listings and removals; a lease is renewed for as long as the process lives, hang or
    not."""
    uri = f"{base or tmp_path}/x"
    for work in (
        lambda: store.write_bytes(uri, b"abc"),
        lambda: store.read_bytes(uri),
        lambda: store.sizes(uri),
        lambda: store.exists(uri),
        lambda: store.remove(uri),
    ):
        before = heartbeat.read().moves
        work()
        assert heartbeat.read().moves > before
    before = heartbeat.read().moves
    with pytest.raises(StoreError):
        store.read_bytes(uri)
    if base:
        tag = store.swap(uri, b"a lease", None)
        assert store.read_tagged(uri) == (b"a lease", tag)
        assert store.swap(uri, None, tag) == ""
    assert heartbeat.read().moves == before


def test_other_threads_do_not_say_where_the_rank_is(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "x")
    with heartbeat.inside("backward"):
        before = heartbeat.read()

        def behind() -> None:
            with heartbeat.inside("the checkpoint's all_gather"):
                assert heartbeat.read() == before

        thread = threading.Thread(target=behind)
        thread.start()
        thread.join()
        assert heartbeat.read() == before
        thread = threading.Thread(target=heartbeat.saved, args=(4,))  # but what they saved is known
        thread.start()
        thread.join()
    assert (heartbeat.read().saved, heartbeat.read().label) == (4, "backward")


def test_steps_of_this_process_are_counted() -> None:
    """The first one takes longer, whatever its number: a run that goes on begins with step 1001."""
    heartbeat = Heartbeat()
    counts = [heartbeat.read().steps]
    for step in (1001, 1002):
        heartbeat.step(step)
        counts.append(heartbeat.read().steps)
    assert counts == [0, 1, 2]


def test_the_last_collectives_are_kept_for_when_the_rank_hangs() -> None:
    heartbeat = Heartbeat()
    heartbeat.step(3)
    for number in range(20):
        with heartbeat.inside(f"all_reduce of {number}"):
            pass
    assert heartbeat.recent()[0] == "  20 all_reduce of 19, in step 3"
    assert len(heartbeat.recent()) == 8


def test_telling_costs_one_write_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often, and of the same size each time: no file is opened, and nothing grows."""
    heartbeat = Heartbeat(tmp_path / "x")
    assert isinstance(heartbeat._record, mmap.mmap) and len(heartbeat._record) == SIZE < 200
    written = list[bytes]()

    class Counted:
        def __setitem__(self, at: slice, data: bytes) -> None:
            assert at == slice(SIZE)
            written.append(data)

    monkeypatch.setattr(heartbeat, "_record", Counted())
    with monkeypatch.context() as patch:
        for module, name in ((os, "open"), (builtins, "open"), (os, "write"), (os, "fsync")):
            patch.setattr(module, name, None)
        for step in range(10):
            heartbeat.step(step)
            with heartbeat.inside("all_reduce"):
                pass
    assert [len(data) for data in written] == [SIZE] * 30


def test_a_record_that_is_not_there_or_not_whole_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert read(path) == HeartbeatRecord() == read(tmp_path / "no" / "folder")
    heartbeat = Heartbeat(path)
    heartbeat.step(9)
    whole = path.read_bytes()
    assert read(path).step == 9
    for data in (b"", whole[:-1], whole + b"\0"):
        path.write_bytes(data)
        assert read(path) == HeartbeatRecord()
    path.write_bytes(bytes(SIZE))
    assert read(path) == HeartbeatRecord(), "made, and not written to yet"
    Heartbeat(path)
    assert read(path).step == 0, "the next rank begins anew"


@settings(deadline=None)
@given(st.binary(min_size=SIZE, max_size=SIZE))
def test_a_torn_record_is_read_all_the_same(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "torn"
    path.write_bytes(data)
    beat = read(path)
    assert beat.step == struct.unpack_from("<q", data)[0]
    assert str(beat.step) in beat.describe()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_long_label_is_cut(label: str) -> None:
    heartbeat = Heartbeat()
    with heartbeat.inside(label):
        shown = heartbeat.read().label
    assert label.startswith(shown.rstrip("\N{REPLACEMENT CHARACTER}")) and len(shown.encode()) <= 83
    if len(label.encode()) <= 80:
        assert shown == label


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    heartbeat = Heartbeat()
    heartbeat.step(2)
    assert heartbeat.read().step == 2
    assert list(tmp_path.iterdir()) == []
