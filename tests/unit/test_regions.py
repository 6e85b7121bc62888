"""BED files of regions: what of them lies in train blocks, how often an epoch visits it, what is refused."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.process import paths
from cluster.storage import store
from configs import ConfigError, validate
from data_prep import shards
from tests.datasets import markov_sequence, write_dataset
from trainer.data.config import Regions as Settings
from trainer.data.dataset import Dataset
from trainer.data.region_sampling import SMALLEST_EPOCH, WINDOWS_A_BLOCK, windows_of
from trainer.data.regions import Regions, RegionSet, open_regions
from trainer.run.config import TrainConfig

BLOCK = 512
SIZES = (5_000, 1_300, 40)  # contigs train0, train1, train2
intervals = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4_900), st.integers(1, 1_500)), min_size=1, max_size=30
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    contigs = {"train": [markov_sequence(bp, seed=bp) for bp in SIZES], "val": [markov_sequence(900, seed=7)]}
    return write_dataset(tmp_path_factory.mktemp("toy"), contigs, block_bp=BLOCK)


def opened(folder: Path, text: str | bytes, *uris: str, **keys: Any) -> tuple[RegionSet, list[str]]:
    """The regions of a BED with ``text`` in the datasets ``uris``, and what was said."""
    (folder / "x.bed").write_bytes(text.encode() if isinstance(text, str) else text)
    said: list[str] = []
    chosen = Settings.model_validate({"beds": [{"uri": str(folder / "x.bed"), **keys}]})
    (found,) = open_regions(chosen, [Dataset(uri, "train") for uri in uris], warn=said.append)
    return found, said


def refusal(folder: Path, text: str | bytes, *uris: str, **keys: Any) -> str:
    with pytest.raises(ConfigError) as fault:
        opened(folder, text, *uris, **keys)
    return str(fault.value)


def only(found: RegionSet) -> Regions:
    (regions,) = found.by_dataset
    assert regions is not None
    return regions


def in_place(drawn: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Those that begin within their contig."""
    return [(contig, start, start + bp) for contig, start, bp in drawn if start < SIZES[contig]]


def bed(lines: list[tuple[int, int, int]]) -> str:
    return "".join(f"train{contig}\t{start}\t{end}\n" for contig, start, end in lines)


def covered(regions: Regions, data: Dataset) -> list[np.ndarray]:
    """By contig: how many pieces lie on each letter."""
    found = [np.zeros(bp, np.int64) for bp in SIZES]
    for block, start, bp in zip(regions.block_P, regions.start_P, regions.bp_P, strict=True):
        entry = data.blocks[block][1]
        assert bp > 0 and start >= 0 and start + bp <= entry.bp
        found[int(entry.contig[-1])][entry.start + start : entry.start + start + bp] += 1
    return found


@settings(max_examples=60, deadline=None)
@given(intervals, st.sampled_from(["bp", "interval"]))
def test_pieces_are_what_the_intervals_cover_of_the_blocks(
    uri: str, tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int]], by: str
) -> None:
    lines = in_place(drawn) or [(0, 0, 10)]
    regions, data = (
        only(opened(tmp_path_factory.mktemp("bed"), bed(lines), uri, by=by)[0]),
        Dataset(uri, "train"),
    )
    wanted = [np.zeros(bp, np.int64) for bp in SIZES]
    for contig, start, end in lines:
        wanted[contig][start:end] += 1
    for found, depth in zip(covered(regions, data), wanted, strict=True):
        assert np.array_equal(found, np.minimum(depth, 1) if by == "bp" else depth)
    order = np.lexsort((regions.start_P, regions.block_P))
    assert np.array_equal(order, np.arange(len(order))) or by == "interval"
    assert (np.diff(regions.block_P) >= 0).all(), "in the order of blocks"
    for region in np.unique(regions.region_P):
        mine = np.flatnonzero(regions.region_P == region)
        mine = mine[np.argsort(regions.before_P[mine])]
        bp = regions.bp_P[mine]
        assert np.array_equal(regions.before_P[mine], np.cumsum(bp) - bp)
        assert (regions.of_P[mine] == bp.sum()).all()
    if by == "interval":
        assert len(np.unique(regions.region_P)) == len(lines)


@settings(max_examples=60, deadline=None)
@given(intervals, st.sampled_from(["bp", "interval", "score"]), st.sampled_from([16, 100, 1000]))
def test_an_epoch_visits_each_region_as_often_as_it_should(
    uri: str,
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[int, int, int]],
    by: str,
    length: int,
) -> None:
    lines = in_place(drawn) or [(0, 0, 10)]
    scores = [(7 * number) % 5 + 0.5 for number in range(len(lines))]
    text = "".join(
        f"{line}\tx\t{score}\n" for line, score in zip(bed(lines).splitlines(), scores, strict=True)
    )
    regions = only(opened(tmp_path_factory.mktemp("bed"), text, uri, by=by)[0])
    windows_P = windows_of(regions, length, key=3)
    assert (windows_P >= 0).all()
    windows_R = np.bincount(regions.region_P, windows_P).astype(int)
    of_R = np.bincount(regions.region_P, regions.bp_P).astype(int)
    if by == "bp":
        weight_R = np.maximum(1, np.floor(of_R / length + 0.5))
    elif by == "interval":
        weight_R = np.ones(len(of_R))
    else:
        weight_R = np.array(scores) / np.mean(scores)
    blocks = len(np.unique(regions.block_P))
    times = max(1, int(np.ceil(max(WINDOWS_A_BLOCK * blocks, SMALLEST_EPOCH) / weight_R.sum() - 1e-9)))
    if by == "score":
        assert (np.abs(windows_R - times * weight_R) < 1).all()
    else:
        assert np.array_equal(windows_R, times * weight_R)
    assert windows_P.sum() >= 0.99 * max(WINDOWS_A_BLOCK * blocks, SMALLEST_EPOCH)
    # Of a region that is cut each piece has its share by bp.
    share_P = windows_R[regions.region_P] * regions.bp_P / regions.of_P
    assert (np.abs(windows_P - share_P) < 2).all()


def test_the_mean_of_scores_is_exact_for_many_small_ones(uri: str, tmp_path: Path) -> None:
    """No region is dropped for good because its score rounds to nothing: a hash decides."""
    lines = [f"train0\t{i}\t{i + 1}\tx\t{1 if i % 2 else 9}\n" for i in range(4_900)]
    regions = only(opened(tmp_path, "".join(lines), uri, by="score")[0])
    windows_P = windows_of(regions, 64, key=5)
    odd = regions.region_P % 2 == 1
    low, high = windows_P[odd].mean(), windows_P[~odd].mean()
    assert set(windows_P[odd]) == {0, 1}
    assert high / low == pytest.approx(9, rel=0.15)
    assert not np.array_equal(windows_P, windows_of(regions, 64, key=6))


def test_a_line_counts_for_every_assembly_unless_the_fourth_column_names_one(
    uri: str, tmp_path: Path
) -> None:
    """As in the BED of a split."""
    other = renamed(uri, tmp_path / "other", "second")
    text = "train0\t0\t100\ttoy\ntrain0\t200\t260\t\ntrain0\t300\t390\tsecond\ntrain1\t0\t9\tthird\n"
    found, said = opened(tmp_path, text, uri, other)
    bp = [int(regions.bp_P.sum()) for regions in found.by_dataset if regions is not None]
    assert bp == [160, 150]
    assert said == [
        f"data.regions.beds: 1 of 4 lines of {tmp_path}/x.bed give no window: 1 of assemblies that are not "
        "in the data (third)"
    ]
    found, said = opened(tmp_path, "train0\t0\t100\tgeneA\ntrain0\t200\t260\n", uri, other)
    assert [regions and int(regions.bp_P.sum()) for regions in found.by_dataset] == [160, 160] and not said


def renamed(uri: str, folder: Path, assembly: str) -> str:
    """A copy of a dataset, whose reference is called ``assembly``."""
    folder.mkdir()
    for name in store.list_files(uri):
        store.write_bytes(str(folder / name), store.read_bytes(store.join(uri, name)))
    text = (folder / shards.MANIFEST).read_text()
    (folder / shards.MANIFEST).write_text(text.replace('"toy"', f'"{assembly}"'))
    return str(folder)


def test_contigs_may_have_other_spellings_and_files_any_compression(uri: str, tmp_path: Path) -> None:
    plain, _ = opened(tmp_path, "train0\t5\t600\n", uri)
    found, said = opened(tmp_path, gzip.compress(b"chrtrain0\t5\t600\n"), uri)
    assert said == [
        f"data.regions.beds: contig chrtrain0 of {tmp_path}/x.bed was read as train0 of the reference"
    ]
    assert only(found).bp_P.tolist() == only(plain).bp_P.tolist() == [507, 88]
    assert found.sha256 != plain.sha256 and len(found.sha256) == 64
    again, _ = opened(tmp_path, b"train0\t5\t600\n", uri)
    assert again.sha256 == plain.sha256, "of the plain bytes"


def test_what_gives_no_window_is_said_in_one_sentence(uri: str, tmp_path: Path) -> None:
    text = "train0\t0\t9\nval0\t0\t9\nval0\t5\t9\nchrUn\t5\t7\ntrain1\t5\t5\ntrain0\t4990\t6000\n"
    found, said = opened(tmp_path, text, uri)
    assert said == [
        f"data.regions.beds: 4 of 6 lines of {tmp_path}/x.bed give no window: 2 held out or left out (val0), "
        "1 on contigs that no assembly of the data has (chrUn), 1 of length 0",
        f"data.regions.beds: 1 of 6 lines of {tmp_path}/x.bed end past the end of their contigs (the first "
        "is line 6): what lies there counts for nothing",
    ]
    assert only(found).bp_P.tolist() == [9, 10], "what lies past the end of a contig counts for nothing"


@pytest.mark.parametrize(
    ("text", "keys", "sentence"),
    [
        ("", {}, "x.bed has no line; give a BED file with intervals, or leave it out"),
        ("val0\t0\t9\nq\t1\t2\n", {}, "no line lies in the train split of "),
        ("val0\t0\t9\nq\t1\t2\n", {}, "2 of 2 lines of"),
        (
            "val0\t0\t9\nq\t1\t2\n",
            {},
            "1 held out or left out (val0), 1 on contigs that no assembly of the data has",
        ),
        (
            "train0\t0\t9\ntrain0\t5000\t5001\n",
            {},
            "x.bed, line 2: train0:5000-5001 lies beyond the contig's 5000 bp in toy; is the BED of another",
        ),
        ("train0\tx\t9\n", {}, "data.regions.beds: "),
        ("train0\tx\t9\n", {}, "x.bed, line 1: needs contig, start and end"),
        (b"PK\x03\x04" + bytes(9), {}, "is a zip archive or an Excel file, not text"),
        (
            "train0\t0\t9\tn\t5\ntrain0\t0\t9\tn\t.\n",
            {"by": "score"},
            "x.bed, line 2: by: score needs a number of 0 or more in column 5, not '.'; give by: bp or by:",
        ),
        (
            "train0\t0\t9\n",
            {"by": "score"},
            "line 1: by: score needs a number of 0 or more in column 5, not ''",
        ),
        ("train0\t0\t9\tn\t-1\n", {"by": "score"}, "not '-1'"),
        ("train0\t0\t9\tn\tnan\n", {"by": "score"}, "not 'nan'"),
        ("train0\t0\t9\tn\t0\n", {"by": "score"}, "1 with score 0; give another BED file"),
    ],
)
def test_what_cannot_be_used_is_refused(
    uri: str, tmp_path: Path, text: str | bytes, keys: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(tmp_path, text, uri, **keys)


def test_a_bed_that_is_not_there_is_named(uri: str, tmp_path: Path) -> None:
    chosen = Settings.model_validate({"beds": [{"uri": str(tmp_path / "no.bed")}]})
    with pytest.raises(store.StoreError, match=r"no\.bed"):
        open_regions(chosen, [Dataset(uri, "train")])


def test_a_dataset_without_regions_has_none(uri: str, tmp_path: Path) -> None:
    other = renamed(uri, tmp_path / "other", "second")
    found, said = opened(tmp_path, "train0\t0\t100\tsecond\n", uri, other)
    assert found.by_dataset[0] is None and found.by_dataset[1] is not None and not said


def settings_of(regions: dict[str, Any]) -> Settings:
    values = {"run": {"dir": "x"}, "data": {"uri": "a", "regions": regions}, "train": {"steps": 1}}
    return validate(TrainConfig, values, source="test").data.regions


def test_a_label_is_by_default_the_file_s_stem() -> None:
    uris = ["s3://b/hg38.exons.bed.gz", "/a/c CREs.BED", "peaks.narrowPeak", "b.bed.zst"]
    found = settings_of({"beds": [*({"uri": uri} for uri in uris), {"uri": "z.bed", "label": "own"}]})
    assert [bed.name for bed in found.beds] == ["hg38.exons", "c_CREs", "peaks.narrowPeak", "b", "own"]
    assert found.anywhere == 0.1 and settings_of({}).beds == ()
    assert settings_of({"anywhere": 0.2}).in_words == ""
    shares = settings_of({"anywhere": 0, "beds": [{"uri": "a.bed", "weight": 2}, {"uri": "b.bed"}]}).in_words
    assert shares == "66.7 % a, 33.3 % b"


def test_a_relative_bed_that_a_ray_job_does_not_copy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setattr(paths, "temporary_folder", lambda: "it is deleted")
    values = {
        "run": {"dir": "/x"},
        "track": {"uri": "http://x"},
        "data": {"uri": "/a", "regions": {"beds": [{"uri": "x.bed"}]}},
        "train": {"steps": 1},
    }
    with pytest.raises(ConfigError, match=r"data\.regions\.beds: .*x\.bed"):
        validate(TrainConfig, values, source="test").refuse_lost()


@pytest.mark.parametrize(
    ("regions", "sentence"),
    [
        ({"anywhere": 1.0}, "data.regions.anywhere: input should be less than 1"),
        ({"anywhere": -0.1}, "data.regions.anywhere: input should be greater than or equal to 0"),
        ({"beds": [{"uri": ""}]}, "data.regions.beds.0.uri"),
        (
            {"beds": [{"uri": "a.bed", "weight": 0}]},
            "data.regions.beds.0.weight: input should be greater than 0",
        ),
        (
            {"beds": [{"uri": "a.bed", "by": "x"}]},
            "data.regions.beds.0.by: input should be 'bp', 'interval' or",
        ),
        ({"beds": [{"uri": "a.bed", "label": "a/b"}]}, "data.regions.beds.0.label: "),
        (
            {"beds": [{"uri": "a.bed"}] * 2},
            "two files have the uri a.bed; give each file once, with a label of",
        ),
        ({"beds": [{"uri": "a/x.bed"}, {"uri": "b/x.bed"}]}, "two files have the label x; give each"),
        (
            {"beds": [{"uri": "anywhere.bed"}]},
            "the windows of anywhere.bed cannot be called 'anywhere' or nothing; give it a label",
        ),
        ({"beds": [{"uri": ".bed"}]}, "the windows of .bed cannot be called"),
        ({"bed": []}, "data.regions.bed: unknown key"),
    ],
)
def test_wrong_keys_get_one_sentence(regions: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as fault:
        settings_of(regions)
    assert sentence in str(fault.value)
