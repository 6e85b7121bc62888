"""data_prep.dataset.annotation: repeats and weights of a built dataset, against the files that they come
from."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyBigWig
import pytest
import torch

from cluster.storage import store
from configs import ConfigError, validate
from data_prep.config import DataConfig, ReferenceConfig
from data_prep.dataset.annotation import Annotation, prepare_annotation
from data_prep.dataset.build import BuildStoppedError, build
from data_prep.dataset.read import load_manifest, packed_blocks
from data_prep.dataset.stats import stats, table
from data_prep.dataset.verify import verify
from data_prep.levels import Scale
from data_prep.shards import SPLITS, Manifest
from data_prep.sources.reference import Handle
from data_prep.sources.survey import Reference
from data_prep.split.intervals import Span
from trainer.core.collectives import Group
from trainer.data.dataset import Dataset
from trainer.data.loader import Reader
from trainer.data.sampling import Phase, SamplingPlan
from trainer.losses.masked_lm import MaskedLm, MaskedLmConfig
from trainer.losses.term import Place, RankBatch
from trainer.models.network import Outputs
from trainer.views.config import Views
from trainer.views.view_batch import make_view_batch

BP = {"chr1": 6001, "chr2": 2500, "chr3": 1500}
OUT = """\
   SW   perc perc perc  query     position in query
score   div. del. ins.  sequence  begin end (left)

  463   1.3  0.6  1.7  1     101   200 (5801) +  AluY  SINE/Alu    1 100   (0)  1
  463   1.3  0.6  1.7  1    1001  1100 (4901) C  L1MC5 LINE/L1  (10) 100     1  2
  463   1.3  0.6  1.7  chr2    1    50 (2450) +  AluY  SINE/Alu    1 100   (0)  3
"""
ALU = {"chr1": [(100, 200)], "chr2": [(0, 50)]}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_CACHE", str(tmp_path / "cache"))


def lower_case(contig: str) -> np.ndarray:
    return np.arange(BP[contig]) % 10 < 3


@pytest.fixture
def fasta(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    records = []
    for contig, bp in BP.items():
        letters = rng.choice(np.frombuffer(b"ACGT", np.uint8), bp) + 32 * lower_case(contig)
        records.append(f">{contig}\n{letters.astype(np.uint8).tobytes().decode()}\n")
    (tmp_path / "g.fa").write_text("".join(records))
    return str(tmp_path / "g.fa")


def values() -> dict[str, np.ndarray]:
    """What the track says of each letter: nothing of chr3 and of some of chr1."""
    rng = np.random.default_rng(1)
    found = {contig: rng.normal(1, 2, BP[contig]).astype(np.float32) for contig in ("chr1", "chr2")}
    found["chr1"][:700] = np.nan
    return found


def bigwig(path: Path, *, bp: dict[str, int] | None = None) -> str:
    with pyBigWig.open(str(path), "w") as file:
        file.addHeader(list((bp or {contig: BP[contig] for contig in values()}).items()))
        for contig, value_L in values().items():
            first = int(np.flatnonzero(~np.isnan(value_L))[0])
            file.addEntries(contig, first, values=value_L[first:].astype(np.float64), span=1, step=1)
    return str(path)


def config(fasta: str, output: Path, reference: dict[str, Any], **changes: Any) -> DataConfig:
    known = {
        "references": [{"name": "toy", "uri": fasta, **reference}],
        "output": str(output),
        "block_bp": 1024,
        "shard_bp": 4096,
        "split": {"val": ["chr2"]},
        "workers": 1,
    }
    return validate(DataConfig, known | changes, source="test")


def read(output: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """contig -> soft mask and levels, put together from the blocks."""
    manifest = load_manifest(str(output))
    parts = sorted(
        (block.contig, block.start, packed)
        for split in SPLITS
        for shard in manifest.shards[split]
        for block, packed in packed_blocks(str(output / shard.name), shard)
    )
    found = {}
    for contig in BP:
        own = [packed for name, _, packed in parts if name == contig]
        soft = np.concatenate([packed.soft_mask(0, packed.bases) for packed in own])
        levels = [level_L for packed in own if (level_L := packed.weights(0, packed.bases)) is not None]
        found[contig] = (soft, np.concatenate(levels) if levels else None)
    return found


@pytest.mark.usefixtures("local_ray")
def test_a_dataset_has_the_repeats_and_weights_of_its_files(fasta: str, tmp_path: Path) -> None:
    (tmp_path / "rm.out").write_text(OUT)
    reference = {
        "repeats": {"uri": str(tmp_path / "rm.out"), "classes": "SINE"},
        "track": {"uri": bigwig(tmp_path / "t.bw"), "high": 5, "missing": 0.4, "levels": 16},
    }
    built = build(config(fasta, tmp_path / "one", reference))
    build(config(fasta, tmp_path / "two", reference, workers=2))
    names = sorted(name for name in os.listdir(tmp_path / "one") if name != "build.json")
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    rm, bw = tmp_path / "rm.out", tmp_path / "t.bw"
    assert built.warnings == (
        f"reference toy: contig 1 of {rm} was read as chr1 of the reference",
        f"{rm} says nothing of reference toy's chr3: no repeats",
        f"{bw} says nothing of reference toy's chr3: their letters have the weight 0.4",
    )
    scale = Scale(0, 5, 0.4, 16)
    for contig, (soft, levels) in read(tmp_path / "one").items():
        wanted = np.zeros(BP[contig], np.bool_)
        for start, end in ALU.get(contig, []):
            wanted[start:end] = True
        assert soft.tolist() == wanted.tolist()
        value_L = values().get(contig, np.full(BP[contig], np.nan)).astype(np.float64)
        assert levels is not None
        assert levels.tolist() == scale.levels(value_L).tolist()
    assert verify(str(tmp_path / "one")) == []
    val = stats(str(tmp_path / "one"))[0].splits["val"]
    mean = scale.levels(values()["chr2"].astype(np.float64)).mean() / 15
    assert (val.track_share, val.mean_weight) == (1, pytest.approx(mean))
    text = table(stats(str(tmp_path / "one"))[0])
    assert f"val: 100.00% of the letters have a track; mean weight {mean:.4f}" in text
    assert "test: " not in text
    loss_is_the_weighted_mean(str(tmp_path / "one"), scale)


def loss_is_the_weighted_mean(uri: str, scale: Scale) -> None:
    """What mlm gives for a batch of the dataset, against a loop over the letters of the track's file."""
    plan = SamplingPlan([1.0], [Phase(0, 64)], seed=3, flank=8, lanes=4, global_batch=12)
    dataset = Dataset(uri, "train")
    windows = Reader([dataset], plan=plan, group=Group(0, 1), track=True, soft=True).batch(0).windows
    views = Views.model_validate(
        {"student": {"reverse_complement": 0.5, "operations": {"deletion": 3, "insertion": 3}}}
    )
    batch, loss = make_view_batch(windows, views), MaskedLm(MaskedLmConfig(soft_weight=0.5, track_floor=0.25))
    extra = loss.prepare(windows, batch)
    rank = RankBatch([batch], [extra], [], None, 12, Group(0, 1))
    logits_BLV = torch.randn(12, 64, 4, generator=torch.Generator().manual_seed(0))
    gathered = {name: value[None] for name, value in loss.payload(rank).items()}
    outputs = Outputs(logits_BLV, torch.empty(12, 1))
    found = loss.value(outputs, Place(0, 0, slice(0, 12)), loss.receive(rank, gathered))
    contigs = {dataset.locus(number)[0]: block.contig for number, (_, block) in enumerate(dataset.blocks)}
    pair, total, weights = batch.pairs[0], 0.0, 0.0
    weighed = set[float]()
    for row, at in pair.masked.target_BL.nonzero().tolist():
        contig, start, _ = windows.place_B3[row].tolist()
        name, position = contigs[contig], start + int(pair.student.source_BL[row, at]) - windows.flank
        value_L = values().get(name, np.full(BP[name], np.nan)).astype(np.float64)
        weight = 0.25 + 0.75 * int(scale.levels(value_L[position : position + 1])[0]) / 15
        if any(first <= position < last for first, last in ALU.get(name, [])):
            weight *= 0.5
        weighed.add(weight)
        chosen = int(pair.masked.labels_BL[row, at])
        total -= weight * float(torch.log_softmax(logits_BLV[row, at].double(), 0)[chosen])
        weights += weight
    assert len(weighed) > 5
    assert float(found) == pytest.approx(total / weights, rel=1e-5)


def prepared(given: dict[str, Any], contigs: dict[str, int] | None = None) -> tuple[Annotation, list[str]]:
    known, told = contigs or BP, list[str]()
    wanted = ReferenceConfig.model_validate({"name": "toy", "uri": "unused", **given})
    reference = Reference(Handle("u.fa", "u.fa", "", "0" * 64, ""), dict(known), 0, "", "", {}, {})
    return prepare_annotation(wanted, reference, known, warn=told.append), told


def test_repeats_replace_lower_case_or_add_to_it(tmp_path: Path) -> None:
    (tmp_path / "r.bed").write_text("chr1\t2\t5\n")
    (tmp_path / "s.bed").write_text("chr1\t4\t7\n")
    span, lower = Span("toy", "chr1", 1, 9), np.arange(8) == 7
    for mode, last in (("replace", False), ("add", True)):
        uris = [str(tmp_path / name) for name in ("r.bed", "s.bed")]
        annotation, _ = prepared({"repeats": {"uri": uris, "mode": mode}})
        wanted = [False, True, True, True, True, True, False, last]
        assert annotation.soft_mask(span, lower).tolist() == wanted
        assert annotation.levels(span) is None
        other = Span("toy", "chr2", 0, 8)
        assert annotation.soft_mask(other, lower).tolist() == [False] * 7 + [last]
        assert annotation.only({"chr2"}).repeats[0].names == {}
    plain, told = prepared({})
    assert plain.soft_mask(span, lower) is lower
    assert (plain.filters, told) == ({}, [])


def test_tracks_of_scores(tmp_path: Path) -> None:
    (tmp_path / "s.bed").write_text("1\t2\t5\tx\t500\n1\t4\t7\ty\t1000\n")
    (tmp_path / "s.bg").write_text("chr1\t2\t5\t0.5\nchr1\t5\t7\t1\n")
    for name, settings in (("s.bed", {"high": 1000}), ("s.bg", {"high": 1, "kind": "bedgraph"})):
        annotation, _ = prepared({"track": {"uri": str(tmp_path / name), "missing": 1, **settings}})
        found = annotation.levels(Span("toy", "chr1", 1, 9))
        assert found is not None
        assert found.tolist() == [15, 10, 10, 15 if name == "s.bed" else 10, 15, 15, 15, 15]
        silent = annotation.levels(Span("toy", "chr2", 1, 9))
        assert silent is not None
        assert silent.tolist() == [15] * 8


def test_a_remote_bigwig_is_read_from_the_cache(tmp_path: Path) -> None:
    path = bigwig(tmp_path / "t.bw")
    store.put_file(Path(path), "memory://tracks/t.bw")
    far, near = (prepared({"track": {"uri": uri, "high": 1}})[0] for uri in ("memory://tracks/t.bw", path))
    assert far.filters == near.filters
    assert far.track is not None
    assert Path(far.track.file.path).parent == tmp_path / "cache"
    span = Span("toy", "chr1", 600, 900)
    assert np.array_equal(far.levels(span), near.levels(span))
    store.remove("memory://tracks")
    with pytest.raises(store.StoreError, match=r"memory://tracks/t.bw"):
        prepared({"track": {"uri": "memory://tracks/t.bw", "high": 1}})


def test_what_determines_the_bytes_is_among_the_filters(tmp_path: Path) -> None:
    (tmp_path / "r.bed").write_text("chr1\t2\t5\n")
    (tmp_path / "s.bed").write_text("chr1\t2\t5\tx\t500\n")
    both = {
        "repeats": {"uri": str(tmp_path / "r.bed")},
        "track": {"uri": str(tmp_path / "s.bed"), "high": 9},
    }
    filters = prepared(both)[0].filters
    assert filters["repeats"].keys() == {"mode", "classes", "sha256"}
    assert filters["track"].keys() == {"kind", "low", "high", "missing", "levels", "sha256"}
    assert str(tmp_path) not in str(filters)
    (tmp_path / "s.bed").write_text("chr1\t2\t5\tx\t501\n")
    assert prepared(both)[0].filters["track"] != filters["track"]
    assert prepared(both)[0].filters["repeats"] == filters["repeats"]


def _bed(text: str) -> Callable[[Path], dict[str, Any]]:
    def reference(folder: Path) -> dict[str, Any]:
        (folder / "r.bed").write_text(text)
        return {"repeats": {"uri": str(folder / "r.bed")}}

    return reference


def _track(**settings: Any) -> Callable[[Path], dict[str, Any]]:
    def reference(folder: Path) -> dict[str, Any]:
        (folder / "t.bed").write_text("chr1\t2\t5\tx\t500\n")
        return {"track": {"uri": str(folder / "t.bed"), "high": 1, **settings}}

    return reference


def _bigwig(change: Callable[[bytes], bytes] = lambda b: b, **how: Any) -> Callable[[Path], dict[str, Any]]:
    def reference(folder: Path) -> dict[str, Any]:
        path = bigwig(folder / "t.bw", bp=how.get("bp"))
        Path(path).write_bytes(change(Path(path).read_bytes()))
        return {"track": {"uri": path, "high": 1, "kind": how.get("kind")}}

    return reference


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            _bed("x\t1\t2\n"),
            r"reference toy: .*r.bed names no contig of it \(the file has x; the",
        ),
        (_bed(""), r"names no contig of it \(the file has nothing; the reference chr1, chr2, chr3\)"),
        (_bed("1\t1\t2\nchr1\t1\t2\n"), "calls its contig chr1 1 and chr1; take one name"),
        (
            _bed("chr1\t1\t2\nchr2\t2500\t2501\n"),
            r"r.bed, line 2: chr2:2500 lies beyond the contig's 2500 bp; is the file of another ver",
        ),
        (_track(kind="bigwig"), r"track.kind is bigwig, but .*t.bed is no bigWig; correct the kind"),
        (_track(kind="bedgraph"), r"line 1: needs contig, start, end, and a number in column 4"),
        (_bigwig(kind="bed"), r"track.kind is bed, but .*t.bw is a bigWig; correct the kind"),
        (
            _bigwig(bp={"chr1": 6002, "chr2": 2500}),
            r"t.bw the contig chr1 has 6002 bp, in the reference 6001; give the track of this version of the",
        ),
        (_bigwig(lambda b: b[:-9]), r"t.bw is a damaged bigWig file, or cut short; get it again"),
        (_bigwig(lambda b: b[:8] + bytes(60) + b[68:]), r"t.bw is a damaged bigWig file"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, reference: Callable[[Path], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(reference(tmp_path))


def test_what_counts_for_nothing_is_told(tmp_path: Path) -> None:
    _, told = prepared(_bed("chr1\t1\t2\nchr1\t5\t5\nchr1\t9\t9\nchr2\t2499\t2600\nalt\t1\t2\n")(tmp_path))
    path = tmp_path / "r.bed"
    assert told == [
        f"{path} has contigs that reference toy does not have (alt): that counts for nothing",
        f"{path} says nothing of reference toy's chr3: no repeats",
        f"{path}: 2 lines of length 0 (the first is line 2): that covers nothing",
        f"{path}, line 4: chr2 ends at 2600, past the contig's 2500 bp: what lies there counts for nothing",
    ]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            {"repeats": {"mode": "add"}},
            "references.0.repeats: uri is missing: mode and classes are",
        ),
        ({"track": {"high": 5}}, "references.0.track: uri is missing: the other keys are of the file"),
        (
            {"track": {"uri": "a"}},
            "references.0.track: high is missing: the value that counts 1, such as",
        ),
        ({"track": {"uri": "a", "high": 0}}, "references.0.track: high 0 must be above low 0"),
        (
            {"track": {"uri": "a", "high": math.nan}},
            "references.0.track.high: input should be a finite",
        ),
        (
            {"track": {"uri": "a", "high": 1, "levels": 3}},
            "references.0.track.levels: input should be 2, 4",
        ),
        (
            {"track": {"uri": "a", "high": 1, "missing": 2}},
            "references.0.track.missing: input should be",
        ),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, reference: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config("x.fa", tmp_path / "o", reference)


def test_files_of_a_reference_are_inputs(tmp_path: Path) -> None:
    reference = {"repeats": {"uri": ["a", "b"]}, "track": {"uri": "c", "high": 1}}
    assert config("x.fa", tmp_path / "o", reference).inputs() == [
        ("references.0.uri", "x.fa"),
        ("references.0.repeats.uri", "a"),
        ("references.0.repeats.uri", "b"),
        ("references.0.track.uri", "c"),
    ]


@pytest.mark.usefixtures("local_ray")
def test_a_file_that_changes_meanwhile_gets_no_manifest(fasta: str, tmp_path: Path) -> None:
    (tmp_path / "r.bed").write_text("chr1\t1\t2\n")
    reference = {
        "track": {"uri": bigwig(tmp_path / "t.bw"), "high": 1},
        "repeats": {"uri": str(tmp_path / "r.bed")},
    }
    repeats = "chr1\t1\t3\n"

    def change(stage: str, done: int, total: int) -> None:
        if stage == "write":
            os.utime(tmp_path / "t.bw", ns=(1, 1))
            (tmp_path / "r.bed").write_text(repeats)

    with pytest.raises(BuildStoppedError, match=r"r.bed changed while it was read, so no manifest"):
        build(config(fasta, tmp_path / "o", reference), on_progress=change)
    assert "manifest.json" not in os.listdir(tmp_path / "o")
    assert build(config(fasta, tmp_path / "p", reference), on_progress=change).fresh, "only the times differ"


@pytest.mark.usefixtures("local_ray")
def test_a_manifest_that_says_otherwise_of_weights_is_a_fault(fasta: str, tmp_path: Path) -> None:
    build(config(fasta, tmp_path / "o", _track()(tmp_path)))
    manifest = tmp_path / "o" / "manifest.json"
    said = Manifest.from_bytes(manifest.read_bytes()).sources[0].filters
    assert said["track"]["kind"] == "bed"
    text = manifest.read_text()
    manifest.write_text(text.replace('"track":{', '"other":{'))
    assert any(
        "its letters have weights, the manifest says no track" in fault
        for fault in verify(str(tmp_path / "o"))
    )
