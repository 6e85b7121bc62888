"""What the teacher reads in place of a window: the same place of the other genome, the same on any number of
ranks; and which windows are then no negatives of each other."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs import ConfigError
from data_prep import alphabet
from tests.datasets import markov_sequence, write_dataset
from tests.orthologs import INVERTED, relatives, relatives_dataset
from tests.unit.test_views import ALL, windows
from trainer.core.collectives import Group
from trainer.data.batch import Batch
from trainer.data.config import Data, Partners
from trainer.data.dataset import Dataset
from trainer.data.loader import Reader, open_reader
from trainer.data.locus import Loci, loci, same_place
from trainer.data.partners import open_partners
from trainer.data.sampling import SamplingPlan
from trainer.data.windows import Windows
from trainer.run.config import TrainConfig
from trainer.views.alignment import align
from trainer.views.config import Views
from trainer.views.view import INSERTED
from trainer.views.view_batch import make_view_pairs

LENGTH, FLANK = 200, 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, local_ray: int) -> str:
    folder = tmp_path_factory.mktemp("relatives")
    relatives_dataset(folder, relatives())
    return str(folder / "dataset")


def reader(
    uris: Sequence[str],
    *,
    rank: int = 0,
    size: int = 1,
    batch: int = 24,
    seed: int = 3,
    regions: dict[str, Any] | None = None,
    **partners: Any,
) -> Reader:
    data = Data.model_validate(
        {
            "uri": [{"uri": uri} for uri in uris],
            "length": LENGTH,
            "lanes": 12,
            "on_corrupt": partners.pop("on_corrupt", "fail"),
            "partners": partners,
            "regions": regions or {},
        }
    )
    plan = SamplingPlan.of(data, seed=seed, global_batch=batch, flank=FLANK)
    datasets = [Dataset(uri, "train") for uri in uris]
    return open_reader(data, datasets, plan=plan, group=Group(rank, size), soft=True, warn=lambda text: None)


def partner_of(batch: Batch) -> Windows:
    assert batch.windows.partner is not None
    return batch.windows.partner


def is_other(batch: Batch) -> torch.Tensor:
    return (partner_of(batch).place_B3 != batch.windows.place_B3).any(1)


def steps(read: Reader, count: int = 12) -> Iterator[Batch]:
    return map(read.batch, range(count))


def test_the_partner_is_the_same_place_of_the_other_genome(dataset: str) -> None:
    pair, data = relatives(), Dataset(dataset, "train")
    contigs = {data.locus(i)[0]: block.assembly for i, (_, block) in enumerate(data.blocks)}
    turned = shifted = others = 0
    for batch in steps(reader([dataset], share=1.0)):
        partner, is_other_B = partner_of(batch), is_other(batch)
        for row in is_other_B.nonzero()[:, 0].tolist():
            contig, start, end = batch.windows.place_B3[row].tolist()
            other, there, until = partner.place_B3[row].tolist()
            assert {contigs[contig], contigs[other]} == {"one", "other"}
            assert until - there == end - start == LENGTH
            genome = pair.one if contigs[other] == "one" else pair.other
            letters = partner.codes_BS[row, FLANK : FLANK + LENGTH].numpy()
            straight = genome[there:until]
            is_turned = not np.array_equal(letters, straight)
            if is_turned:
                assert np.array_equal(letters, alphabet.reverse_complement(straight))
            low, high = int(partner.low_B[row]), int(partner.high_B[row])
            around = genome[max(0, there - FLANK) : until + FLANK]
            read = partner.codes_BS[row, low:high].numpy()
            text = read.tobytes() if not is_turned else alphabet.reverse_complement(read).tobytes()
            assert text in around.tobytes(), "the flanks are the genome's"
            # Where the middle letter of the one is in the other.
            one_start, other_start = (start, there) if contigs[contig] == "one" else (there, start)
            truth = pair.to_other[one_start : one_start + LENGTH]
            is_in = (truth >= other_start - 20) & (truth < other_start + LENGTH + 20)
            near = is_in.sum() / max(1, (truth >= 0).sum())
            others, shifted = others + 1, shifted + (near < 0.9)
            turned += is_turned
            if near >= 0.9:
                assert is_turned == bool(pair.turned[one_start + LENGTH // 2])
    assert others > 200, "nearly all have one"
    assert shifted < 0.12 * others, "but for windows at the edge of a block or of a piece that moved"
    assert turned > 0.05 * others, "also of the piece that was turned round"
    assert INVERTED[1] - INVERTED[0] > 0.05 * len(pair.one)


def test_the_samples_are_those_without_partners_and_share_is_a_share(dataset: str) -> None:
    counts = {}
    for share in (0.0, 0.5, 1.0):
        count = total = 0
        for batch, plain in zip(steps(reader([dataset], share=share)), steps(reader([dataset])), strict=True):
            assert torch.equal(batch.ids_B4, plain.ids_B4)
            for name in ("codes_BS", "low_B", "high_B", "key_B", "place_B3", "soft_BS"):
                assert torch.equal(getattr(batch.windows, name), getattr(plain.windows, name)), name
            assert plain.windows.partner is None and plain.windows.root_B3 is None
            if share:
                partner, own_B = partner_of(batch), ~is_other(batch)
                assert torch.equal(partner.codes_BS[own_B], batch.windows.codes_BS[own_B])
                assert torch.equal(partner.key_B, batch.windows.key_B)
                count += int((~own_B).sum())
                total += len(own_B)
        counts[share] = count / max(1, total)
    assert counts[1.0] > 0.9 and 0.4 < counts[0.5] < 0.6


@pytest.mark.parametrize("kind", ["ortholog", "random"])
def test_the_same_on_any_number_of_ranks_and_after_a_resume(dataset: str, kind: str) -> None:
    whole = reader([dataset], share=0.7, kind=kind)
    for step in (0, 1, 9):
        batch = whole.batch(step)
        rows = {tuple(key): row for row, key in enumerate(batch.ids_B4.tolist())}
        for size in (2, 4):
            for rank in range(size):
                part = reader([dataset], rank=rank, size=size, share=0.7, kind=kind).batch(step)
                at = torch.tensor([rows[tuple(key)] for key in part.ids_B4.tolist()])
                for mine, theirs in ((part.windows, batch.windows), (partner_of(part), partner_of(batch))):
                    for name in ("codes_BS", "low_B", "high_B", "key_B", "place_B3"):
                        assert torch.equal(getattr(mine, name), getattr(theirs, name)[at]), name
                assert part.windows.root_B3 is not None and batch.windows.root_B3 is not None
                assert torch.equal(part.windows.root_B3, batch.windows.root_B3[at])


def test_windows_of_regions_have_partners_too(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("".join(f"a\t{i}\t{i + 90}\n" for i in range(1_000, 50_000, 700)))
    regions = {"anywhere": 0.2, "beds": [{"uri": str(tmp_path / "x.bed")}]}
    whole = reader([dataset], share=1.0, regions=regions)
    other, chosen = 0, 0
    for step in range(8):
        batch = whole.batch(step)
        rows = batch.tags_B == 0
        other, chosen = other + int(is_other(batch)[rows].sum()), chosen + int(rows.sum())
        for rank in range(2):
            part = reader([dataset], rank=rank, size=2, share=1.0, regions=regions).batch(step)
            assert torch.equal(partner_of(part).codes_BS, partner_of(batch).codes_BS[rank::2])
    assert other > 0.8 * chosen > 0


def test_the_control_reads_the_same_genome_anywhere(dataset: str) -> None:
    starts, near = [], 0
    for true, control in zip(
        steps(reader([dataset], share=0.5)), steps(reader([dataset], share=0.5, kind="random")), strict=True
    ):
        assert torch.equal(is_other(true), is_other(control)), "for the same samples"
        rows = is_other(true)
        one, two = partner_of(true).place_B3[rows], partner_of(control).place_B3[rows]
        assert torch.equal(one[:, 0], two[:, 0]), "in the same genome"
        assert ((two[:, 2] - two[:, 1]) == LENGTH).all()
        near += int(((one[:, 1] - two[:, 1]).abs() < LENGTH).sum())
        starts += two[:, 1].tolist()
        assert torch.equal(true.windows.root_B3, control.windows.root_B3)  # type: ignore[arg-type]
    assert near < 0.05 * len(starts)
    assert np.std(starts) > 0.8 * 60_000 / 12**0.5, "uniform over it"


def test_windows_of_the_same_descent_are_no_negatives_of_each_other(dataset: str) -> None:
    """Also of two samples that are no partners of each other, and where no partner is drawn."""
    pair, data = relatives(), Dataset(dataset, "train")
    contigs = {data.locus(i)[0]: block.assembly for i, (_, block) in enumerate(data.blocks)}
    missed = found = false = apart = 0
    for share in (1.0, 0.01):
        batch = reader([dataset], batch=240, share=share).batch(0)
        place = loci(batch.windows)
        assert place.place_N4.shape == (240, 12)
        same = same_place(place, place)
        assert torch.equal(same, same.T)
        own = batch.windows.place_B3.tolist()
        for i, (contig, start, end) in enumerate(own):
            for j, (other, there, until) in enumerate(own):
                if (contigs[contig], contigs[other]) == ("one", "other"):
                    truth = pair.to_other[start:end]
                    shared = int(((truth >= there) & (truth < until)).sum())
                    found, missed = found + (shared > 20), missed + (shared > 20 and not same[i, j])
                    if int((np.abs(truth - (there + until) // 2)).min()) > 3 * LENGTH and share < 0.5:
                        apart, false = apart + 1, false + bool(same[i, j])
                elif contig == other:
                    assert bool(same[i, j]) >= (start < until and there < end)
    assert found > 100 and missed < 0.05 * found
    assert false < 0.001 * apart


def test_no_window_is_a_negative_of_what_another_one_s_teacher_reads() -> None:
    source = windows(4)
    place = source.place_B3
    # Row 0's partner lies where row 1 does, row 2 has the partner of row 3, row 3 none.
    partner_place = torch.stack(
        [place[1] + torch.tensor([0, 150, 150]), place[1] * 0 + 77, place[3], place[3]]
    )
    partner = dataclasses.replace(
        source,
        place_B3=partner_place,
        codes_BS=torch.cat([windows(3, seed=9).codes_BS, source.codes_BS[3:]]),
    )
    found = loci(dataclasses.replace(source, partner=partner, root_B3=place))
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert torch.equal(same_place(found, found), expected)
    # The same root, and nothing else.
    root = place.clone()
    root[3] = root[1] + torch.tensor([0, 10, 10])
    found = loci(dataclasses.replace(source, partner=source, root_B3=root))
    expected = torch.eye(4, dtype=torch.bool)
    expected[1, 3] = expected[3, 1] = True
    assert torch.equal(same_place(found, found), expected)
    # The same letters of the partners, far from each other.
    twins = dataclasses.replace(
        windows(4, seed=9),
        place_B3=torch.arange(12).view(4, 3) * 100_000 + 1,
        codes_BS=source.codes_BS[[0, 1, 1, 3]],
    )
    found = loci(dataclasses.replace(source, partner=twins, root_B3=place))
    assert same_place(found, found)[1, 2] and not same_place(found, found)[0, 3]
    assert torch.equal(same_place(found, Loci(found.place_N4[2:])), same_place(found, found)[:, 2:])


def with_partners(rows: int = 16) -> Windows:
    """The second half of the rows have another window as a partner."""
    source, other = windows(rows), windows(rows, seed=4)
    mine = torch.arange(rows) < rows // 2
    partner = dataclasses.replace(
        other,
        codes_BS=torch.where(mine[:, None], source.codes_BS, other.codes_BS),
        place_B3=torch.where(mine[:, None], source.place_B3, other.place_B3 + 1000),
        key_B=source.key_B,
    )
    return dataclasses.replace(source, partner=partner, root_B3=source.place_B3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_student_reads_its_window_and_the_teacher_the_partner(symmetric: bool) -> None:
    source, rows = with_partners(), 16
    views = Views.model_validate(
        {
            "symmetric": symmetric,
            "student": {"reverse_complement": 0.5, "noise": 0.1},
            "teacher": {"operations": ALL, "substitution": 0.1},
        }
    )
    plain = make_view_pairs(dataclasses.replace(source, partner=None), views)
    assert source.partner is not None
    others = make_view_pairs(source.partner, views)
    pairs = make_view_pairs(source, views)
    assert len(pairs) == 1 + symmetric
    for pair, without, other in zip(pairs, plain, others, strict=True):
        assert torch.equal(pair.masked.codes_BL, without.masked.codes_BL)
        assert torch.equal(pair.masked.labels_BL, without.masked.labels_BL)
        assert torch.equal(pair.masked.target_BL, without.masked.target_BL)
        assert torch.equal(pair.student.source_BL, without.student.source_BL)
        assert torch.equal(pair.teacher.codes_BL, other.teacher.codes_BL)
        half = rows // 2
        assert torch.equal(pair.teacher.source_BL[:half], without.teacher.source_BL[:half])
        assert (pair.teacher.source_BL[half:] == INSERTED).all()
        aligned = align(pair.student, pair.masked, pair.teacher, source, name=pair.name, pairs=6)
        assert aligned.valid_BN[:half].any(1).all() and not aligned.valid_BN[half:].any()
        assert not aligned.teacher_BN[half:].any()


def test_rows_of_a_batch_keep_their_partners() -> None:
    source = with_partners()
    part = source.each(lambda tensor: tensor[4:12])
    assert part.partner is not None and source.partner is not None and part.root_B3 is not None
    assert torch.equal(part.partner.codes_BS, source.partner.codes_BS[4:12])
    assert torch.equal(part.root_B3, source.place_B3[4:12])


def test_a_dataset_without_a_table_is_a_sentence(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(5000, seed=0)]})
    with pytest.raises(
        ConfigError, match=rf"share is 0.5, but the train split of {uri} has no partners; build"
    ):
        reader([uri], share=0.5)
    assert reader([uri], kind="random").batch(0).windows.partner is None


def test_of_a_mixture_those_without_a_table_read_their_own(dataset: str, tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(40_000, seed=0)]})
    batch = reader([dataset, uri], share=1.0).batch(0)
    second = batch.ids_B4[:, 0] == 1
    assert second.any() and not is_other(batch)[second].any() and is_other(batch)[~second].any()
    assert batch.windows.root_B3 is not None
    assert torch.equal(batch.windows.root_B3[second], batch.windows.place_B3[second])


def test_a_damaged_table_is_a_sentence(dataset: str, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "copy")
    table = tmp_path / "copy" / "partners.bin"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"partners.bin has sha256 \w+, the manifest says \w+; run data_prep"
    ):
        open_partners([Dataset(str(tmp_path / "copy"), "train")], Partners(share=0.1))


def test_where_a_partner_s_block_is_damaged_the_teacher_reads_the_sample_s_own(
    dataset: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    data = Dataset(str(copy), "train")
    shard, block = data.blocks[2]
    content = bytearray((copy / shard.name).read_bytes())
    content[block.offset + block.size - 1] ^= 1
    (copy / shard.name).write_bytes(content)
    hit = 0
    for batch, whole in zip(
        steps(reader([str(copy)], share=1.0, on_corrupt="skip")),
        steps(reader([dataset], share=1.0)),
        strict=True,
    ):
        contig, start = data.locus(2)
        place = partner_of(whole).place_B3
        lost = (place[:, 0] == contig) & (place[:, 1] >= start) & (place[:, 2] <= start + block.bp)
        lost &= is_other(whole)
        assert not is_other(batch)[lost].any()
        assert torch.equal(batch.windows.codes_BS[lost], whole.windows.codes_BS[lost])
        assert not lost.any() or any(number == 2 for _, _, number in batch.skipped)
        hit += int(lost.sum())
    assert hit
    with pytest.raises(ValueError, match="does not match its crc32"):
        list(steps(reader([str(copy)], share=1.0)))


@pytest.mark.parametrize(
    ("losses", "reads"),
    [
        ({"mlm": {"weight": 1}}, False),
        ({"mlm": {"weight": 1}, "patch": {"weight": 1}}, False),  # a partner has none of the window's letters
        ({"mlm": {"weight": 1}, "contrastive": {"weight": 1, "keys": "student"}}, False),
        ({"patch": {"weight": 1}, "contrastive": {"weight": 1, "keys": "teacher"}}, True),
        ({"distill": {"weight": 1}}, True),
    ],
)
def test_a_loss_must_compare_the_teachers_whole_windows(losses: dict[str, Any], reads: bool) -> None:
    values = {
        "run": {"dir": "x"},
        "data": {"uri": "y", "partners": {"share": 0.5}},
        "loss": {"distill": {"weight": 0}} | losses,
        "train": {"steps": 1},
    }
    if reads:
        TrainConfig.model_validate(values)
        return
    with pytest.raises(
        ValueError, match=r"data.partners.share: the teacher alone reads partners, and no loss"
    ):
        TrainConfig.model_validate(values)
