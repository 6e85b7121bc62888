"""The partner table: what became of a letter is known; the file comes back as it was; faults are
sentences."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.__main__ import main
from data_prep.alphabet import N, reverse_complement
from data_prep.config import DataConfig
from data_prep.dataset.read import load_manifest
from data_prep.dataset.stats import stats, table
from data_prep.dataset.verify import verify
from data_prep.partners import IDENTITY_UNIT, MOST_APART, PARTNERS, PartnerTable, load
from data_prep.shards import FORMAT_VERSION, FormatError, Manifest
from data_prep.split.chains import Chaining, Chains, chains, sketch
from tests.orthologs import INVERTED, MOVED, Relatives, relatives, relatives_dataset, write_fasta

CHAINING = Chaining(k=15, window=3, max_gap=500, max_shift=50, min_anchors=3)


def found(pair: Relatives, chaining: Chaining = CHAINING) -> Chains:
    one, other = (sketch([(0, codes)], len(codes), chaining) for codes in (pair.one, pair.other))
    return chains(one, other, chaining)


def interpolated(of: Chains, bp: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where the chains say that each letter of the first genome stands in the other; -1: they do not."""
    place = np.full(bp, -1)
    for x, y in zip(
        *(np.split(part, np.cumsum(of.anchors_C)[:-1]) for part in (of.at_N, of.partner_at_N)), strict=True
    ):
        inside = np.arange(x[0], x[-1] + 1)
        place[inside] = np.rint(np.interp(inside, x, y)).astype(np.int64)
    return place


@pytest.mark.parametrize("seed", range(3))
def test_anchors_are_the_truth_and_what_lies_between_is_near_it(seed: int) -> None:
    pair = relatives(seed=seed)
    of = found(pair)
    assert (pair.to_other[of.at_N] == of.partner_at_N).mean() > 0.999
    place = interpolated(of, len(pair.one))
    known = (place >= 0) & (pair.to_other >= 0)
    wrong = np.abs(place - pair.to_other)[known]
    assert known.mean() > 0.95, "nearly all of it has a partner"
    assert np.quantile(wrong, 0.99) <= 6 and wrong.max() <= 50
    for start, end in (INVERTED, MOVED):
        assert known[start:end].mean() > 0.9, "the piece that was turned or moved, too"
    first = np.cumsum(of.anchors_C) - of.anchors_C
    for at, turned in zip(of.at_N[first].tolist(), of.reversed_C.tolist(), strict=True):
        assert turned == pair.turned[at]
    # A letter is drawn anew with 0.06, and is then another one in 3 of 4 cases.
    assert np.average(of.identity_C, weights=of.anchors_C) / IDENTITY_UNIT == pytest.approx(0.955, abs=0.015)


def test_unrelated_genomes_have_no_chain() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 4, 400_000, dtype=np.uint8) for _ in range(2))
    assert len(found(Relatives(one, other, one, one)).anchors_C) == 0  # type: ignore[arg-type]
    nothing = np.full(1000, N, np.uint8)
    assert len(found(Relatives(one, nothing, one, one)).at_N) == 0  # type: ignore[arg-type]


def test_a_repeat_is_no_anchor() -> None:
    rng = np.random.default_rng(1)
    unit, far = rng.integers(0, 4, 600, dtype=np.uint8), rng.integers(0, 4, 3000, dtype=np.uint8)
    twice = np.concatenate([unit, far, reverse_complement(unit)])
    assert len(found(Relatives(twice, unit, unit, unit)).at_N) == 0  # type: ignore[arg-type]
    once = np.concatenate([unit, far])
    assert len(found(Relatives(once, unit, unit, unit)).anchors_C) == 1  # type: ignore[arg-type]


def test_the_other_way_round_is_the_same() -> None:
    pair = relatives(seed=5)
    back = found(Relatives(pair.other, pair.one, pair.to_other, pair.turned))
    of = found(pair)
    assert {*zip(of.at_N.tolist(), of.partner_at_N.tolist(), strict=True)} >= {
        *zip(back.partner_at_N.tolist()[:50], back.at_N.tolist()[:50], strict=True)
    }
    assert len(of.anchors_C) == len(back.anchors_C)


@st.composite
def tables(draw: st.DrawFn) -> PartnerTable:
    counts = draw(st.lists(st.integers(1, 6), max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    places = (("one", "a"), ("one", "b|x y"), ("other", "ä"))
    turned = rng.integers(0, 2, len(counts))
    at, partner_at = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for count, back in zip(counts, turned.tolist(), strict=True):
        steps = rng.integers(0, MOST_APART + 1, (2, count)).cumsum(1) + rng.integers(0, 1 << 40, (2, 1))
        at.append(steps[0])
        partner_at.append(steps[1][::-1] if back else steps[1])
    return PartnerTable(
        15,
        places,
        rng.integers(0, 3, len(counts)),
        rng.integers(0, 3, len(counts)),
        turned,
        rng.integers(0, IDENTITY_UNIT + 1, len(counts)),
        np.array(counts, np.int64),
        np.concatenate(at),
        np.concatenate(partner_at),
    )


@settings(max_examples=60, deadline=None)
@given(tables())
def test_a_table_comes_back_from_its_file(of: PartnerTable) -> None:
    data = of.to_bytes()
    back = PartnerTable.from_bytes(data)
    assert back.to_bytes() == data and (back.k, back.places) == (of.k, of.places)
    for name in ("place_C", "partner_C", "reversed_C", "identity_C", "anchors_C", "at_N", "partner_at_N"):
        assert np.array_equal(getattr(back, name), getattr(of, name)), name


def test_a_damaged_file_is_a_sentence() -> None:
    data = PartnerTable(15, (), *[np.zeros(0, np.int64)] * 7).to_bytes()
    with pytest.raises(FormatError, match="partner table starts with b'DNAX', not b'DNAP'"):
        PartnerTable.from_bytes(b"DNAX" + data[4:])
    with pytest.raises(FormatError, match="does not match its crc32"):
        PartnerTable.from_bytes(data[:-1] + b"x")
    with pytest.raises(FormatError, match=f"format version 9, this code reads {FORMAT_VERSION}; build"):
        PartnerTable.from_bytes(data[:4] + b"\x09" + data[5:])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, local_ray: int) -> Path:
    folder = tmp_path_factory.mktemp("relatives")
    relatives_dataset(folder, relatives())
    return folder / "dataset"


def test_a_build_writes_a_table_of_what_is_trained_on(built: Path) -> None:
    manifest = load_manifest(str(built))
    assert manifest.partners and manifest.partners["between"] == ["one", "other"]
    of = load(manifest, (built / PARTNERS).read_bytes())
    assert of.places == (("one", "a"), ("other", "a")), (
        "held-out contigs, copies of these, have no part in it"
    )
    pair = relatives()
    assert (pair.to_other[of.at_N] == of.partner_at_N).mean() > 0.999
    assert verify(str(built)) == []
    numbers, _ = stats(str(built))
    assert numbers.partners and numbers.partners.any_share["one"] > 0.9
    assert {(part.of, part.within) for part in numbers.partners.pairs} == {("one", "other"), ("other", "one")}
    assert "one" in table(numbers) and "alike)" in table(numbers)


def test_the_bytes_do_not_depend_on_the_workers(built: Path, tmp_path: Path) -> None:
    relatives_dataset(tmp_path, relatives(), workers=2)
    for name in ("manifest.json", PARTNERS):
        assert (tmp_path / "dataset" / name).read_bytes() == (built / name).read_bytes()


def test_a_dataset_without_partners_says_nothing_of_them(built: Path, tmp_path: Path) -> None:
    relatives_dataset(tmp_path, relatives(), partners={})
    assert "partners" not in json.loads((tmp_path / "dataset" / "manifest.json").read_bytes())
    assert not (tmp_path / "dataset" / PARTNERS).exists()
    with pytest.raises(ValueError, match=r"holds another dataset \(it differs in partners\)"):
        relatives_dataset(tmp_path, relatives())
    assert relatives_dataset(tmp_path, relatives(), overwrite=True).fresh
    assert (tmp_path / "dataset" / PARTNERS).read_bytes() == (built / PARTNERS).read_bytes()
    assert not relatives_dataset(tmp_path, relatives()).fresh
    (tmp_path / "dataset" / PARTNERS).unlink()
    assert relatives_dataset(tmp_path, relatives()).fresh, "what is missing is made again"
    assert relatives_dataset(tmp_path, relatives(), partners={}, overwrite=True).fresh
    assert not (tmp_path / "dataset" / PARTNERS).exists()


def test_verify_names_what_is_wrong_with_the_table(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    data = (folder / PARTNERS).read_bytes()
    (folder / PARTNERS).write_bytes(data[:-2] + b"xx")
    (fault,) = verify(str(folder))
    assert fault.startswith(f"{PARTNERS} has sha256 ") and "the manifest says" in fault
    (folder / PARTNERS).unlink()
    assert verify(str(folder)) == [f"{PARTNERS} is missing"]
    # A table that names what is held out: the sentence says how much of it.
    manifest = load_manifest(str(folder))
    of = PartnerTable.from_bytes(data)
    leaky = PartnerTable(**{**vars(of), "places": (("one", "b"), ("other", "a"))}).to_bytes()
    (folder / PARTNERS).write_bytes(leaky)
    described = {**(manifest.partners or {}), "sha256": hashlib.sha256(leaky).hexdigest()}
    (folder / "manifest.json").write_bytes(Manifest(**{**vars(manifest), "partners": described}).to_bytes())
    (fault,) = verify(str(folder))
    assert fault == f"{PARTNERS}: {len(of.at_N)} anchors in one:b are not in the train split"
    (folder / "manifest.json").write_bytes(Manifest(**{**vars(manifest), "partners": None}).to_bytes())
    assert f"{PARTNERS} is not in the manifest; another build left it" in verify(str(folder))


@pytest.mark.parametrize(
    ("partners", "message"),
    [
        ({"between": ["one", "twö"]}, "partners.between: no reference matches 'twö'; there are one, other"),
        ({"between": ["o?e"]}, "one is the only reference that it names; partners need at least two"),
        ({"between": ["*"], "k": 16}, "must be odd, so that no k-mer is its own reverse complement, not 16"),
        ({"between": ["*"], "max_gap": 40_000}, "less than or equal to 32767"),
    ],
)
def test_wrong_settings_are_a_sentence(partners: dict[str, Any], message: str) -> None:
    values = {
        "references": [{"name": "one", "uri": "x"}, {"name": "other", "uri": "y"}],
        "output": "z",
        "partners": partners,
    }
    with pytest.raises(ValidationError, match=message.replace("?", r"\?")):
        DataConfig.model_validate(values)


def test_names_that_stand_twice_are_numbered_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], local_ray: int
) -> None:
    pair = relatives(bp=60_000)
    fasta = write_fasta(
        tmp_path / "x.fa", {"a": pair.one[:9000], "a two": pair.one[9000:19_000], "b": pair.other}
    )
    config = tmp_path / "c.yaml"
    config.write_text(
        f"references: [{{name: x, uri: {fasta}}}]\n"
        f"output: {tmp_path}/out\nblock_bp: 4096\nsplit: {{val: [b]}}\n"
    )
    assert main(["build", "--config", str(config)]) == 1
    assert "repeated_names: number" in capsys.readouterr().err
    config.write_text(config.read_text().replace("fa}", "fa, repeated_names: number}"))
    assert main(["build", "--config", str(config)]) == 0
    (source,) = load_manifest(f"{tmp_path}/out").sources
    assert source.contigs == {"a": 9000, "a.2": 10_000, "b": len(pair.other)}
    assert source.filters["repeated_names"] == "number"
