"""data_prep.dataset.families: homology splits, held-out clades and dedup, from config to dataset."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.tasks import jobs
from configs import ConfigError, load, validate
from data_prep.alphabet import Codes, decode, encode
from data_prep.config import CladeSplit, DataConfig
from data_prep.dataset.build import build
from data_prep.dataset.families import Divided, divide
from data_prep.dataset.leaks import dataset_leakage
from data_prep.dataset.plan import make_plan
from data_prep.dataset.read import load_manifest
from data_prep.dataset.references import prepare_all
from data_prep.dataset.runner import Runner
from data_prep.dataset.summary import summary
from data_prep.dataset.verify import verify
from data_prep.shards import SPLITS
from tests.unit.test_homology import mutated, worst_share
from tests.unit.test_leakage import run, some

ROOT = Path(__file__).resolve().parents[2]
HOMOLOGY = {"k": 15, "window": 6, "min_link": 0.02, "window_bp": 200}
CLADES = {"human": "mammals/primates", "mouse": "mammals/glires", "chicken": "birds", "other": None}


@pytest.fixture(scope="module")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three species of one descent, of 12,000 bp in two contigs, and one of another."""
    folder = tmp_path_factory.mktemp("genomes")
    ancestor = some(0, 12_000)
    species = {name: mutated(ancestor, share, i) for i, (name, share) in enumerate(SHARES.items())}
    species["other"] = some(9, 12_000)
    write(folder / "sister.fa", mutated(species["human"], 0.002, 7))
    return {name: write(folder / f"{name}.fa", codes) for name, codes in species.items()}


SHARES = {"human": 0.02, "mouse": 0.06, "chicken": 0.1}


def write(path: Path, codes: Codes) -> Path:
    letters = decode(codes).decode()
    path.write_text(f">one\n{letters[:7000]}\n>two\n{letters[7000:]}\n")
    return path


def with_sister(genomes: dict[str, Path]) -> dict[str, Path]:
    """``genomes`` and one more that is almost human."""
    return genomes | {"sister": genomes["human"].parent / "sister.fa"}


def config(genomes: dict[str, Path], output: Path | str = "o", **values: Any) -> DataConfig:
    split = {"gap": 0, "min_bp": 200, "homology": HOMOLOGY} | values.pop("split", {})
    wanted = {
        "references": [
            {"name": name, "uri": str(path), "clade": CLADES.get(name)} for name, path in genomes.items()
        ],
        "output": str(output),
        "block_bp": 1024,
        "shard_bp": 4096,
        "split": split,
    }
    return validate(DataConfig, wanted | values, source="test")


def divided(wanted: DataConfig, monkeypatch: pytest.MonkeyPatch) -> Divided:
    """What ``divide`` makes of it, in this process."""
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "run", lambda *tasks, on_retry=None, near=None, **how: run(*tasks, **how))
        runner = Runner(1, lambda *_: None, lambda reason: None)
        references = prepare_all(wanted.references, runner)
        return divide(make_plan(wanted, references), wanted, references, runner)


def letters(wanted: DataConfig, found: Divided, split: str) -> list[Codes]:
    texts = {}
    for reference in wanted.references:
        records = Path(reference.uri[0]).read_text().split(">")[1:]
        texts |= {(reference.name, r.split("\n")[0]): r.split("\n")[1] for r in records}
    return [encode(texts[span.place][span.start : span.end].encode())[0] for span in found.plan.parts[split]]


def shared(wanted: DataConfig, found: Divided, of: str, within: tuple[str, ...]) -> float:
    elsewhere = set[bytes]()
    for split in within:
        for codes in letters(wanted, found, split):
            for text in (decode(codes), decode((3 - codes)[::-1])):
                elsewhere |= {text[i : i + 15] for i in range(len(text) - 14)}
    return worst_share(letters(wanted, found, of), elsewhere, 200, step=5)


def test_families_stay_whole_and_no_window_is_shared(
    genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(genomes, split={"val": 0.2, "test": 0.15, "by": "homology"})
    found = divided(wanted, monkeypatch)
    assert found.families and found.splits
    assert found.families.blocks == 48 and found.families.sampled == 1
    assert found.families.families >= 1 and found.families.largest_bp >= 3 * 1024
    val, test = found.splits["val"], found.splits["test"]
    assert val.wanted_bp == 9600 and 0.9 * 9600 < val.drawn_bp <= 9600
    assert test.wanted_bp == 7200 and 0.8 * 7200 < test.drawn_bp <= 7200
    for name, done in found.splits.items():
        kept = sum(span.bp for span in found.plan.parts[name])
        assert done.kept_bp == kept == done.drawn_bp - done.trimmed_bp > 0
    assert shared(wanted, found, "val", ("train",)) <= 0.1
    assert shared(wanted, found, "test", ("train", "val")) <= 0.1
    bp = {split: sum(span.bp for span in found.plan.parts[split]) for split in SPLITS}
    assert bp["train"] + val.drawn_bp + test.drawn_bp + val.buffer_bp + test.buffer_bp == 48_000
    by_blocks = config(genomes, split={"val": 0.2, "by": "contigs"})
    assert shared(by_blocks, divided(by_blocks, monkeypatch), "val", ("train",)) > 0.5, "what it is for"


def test_order_of_references_and_names_change_no_letter(
    genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def held_out(paths: dict[str, Path]) -> dict[str, list[bytes]]:
        dedup = {"mode": "drop", "min_shared": 0.8}
        wanted = config(paths, split={"val": 0.2, "by": "homology"}, dedup=dedup)
        found = divided(wanted, monkeypatch)
        assert found.duplicates and found.duplicates.spans
        return {split: sorted(map(decode, letters(wanted, found, split))) for split in SPLITS}

    genomes = with_sister(genomes)
    turned = {name.upper(): genomes[name] for name in reversed(genomes)}
    assert held_out(genomes) == held_out(turned)


def test_a_gap_is_cut_from_train(genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = divided(config(genomes, split={"val": 0.1, "by": "homology", "gap": 100}), monkeypatch)
    assert found.splits
    for span in found.plan.parts["val"]:
        assert not [
            t
            for t in found.plan.parts["train"]
            if t.place == span.place and t.start < span.end + 100 and span.start - 100 < t.end
        ]


@pytest.mark.usefixtures("local_ray")
def test_a_build_by_homology(genomes: dict[str, Path], tmp_path: Path) -> None:
    """The same bytes on one and two workers and after a build that was cut short; verify; what it says."""
    changes: dict[str, Any] = {
        "split": {"val": 0.2, "by": "homology"},
        "dedup": {"mode": "drop", "min_shared": 0.8},
    }
    genomes = with_sister(genomes)
    one = build(config(genomes, tmp_path / "one", workers=1, **changes))
    wanted = config(genomes, tmp_path / "two", workers=2, **changes)
    built = build(wanted)
    for name in ("manifest.json", "val.bed", "train.bed", "leakage.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert verify(str(tmp_path / "two")) == []
    assert not build(wanted).fresh
    (tmp_path / "two" / "manifest.json").unlink()
    (tmp_path / "two" / "train-000001.tar").unlink()
    again = build(wanted)
    assert again.manifest == built.manifest == one.manifest and again.found_shards > 3
    split = load_manifest(str(tmp_path / "two")).split
    assert (split["by"], split["homology"]["k"], split["dedup"]["min_shared"]) == ("homology", 15, 0.8)
    told = json.loads((tmp_path / "two" / "build.json").read_bytes())
    assert told["homology"]["splits"]["val"]["kept_bp"] == built.manifest.bp("val")
    assert told["dedup"]["blocks"] > 0
    report = json.loads((tmp_path / "two" / "leakage.json").read_bytes())
    assert report == json.loads(json.dumps(dataset_leakage(str(tmp_path / "two"), workers=2).to_dict()))
    assert set(report["clades"]["held_out"]) <= {"mammals/primates", "mammals/glires", "birds"}
    said = "\n".join(summary(again, wanted))
    assert "of 60 blocks, the largest of" in said and "families whole and" in said
    assert f"val: {built.manifest.bp('val'):,} bp are left; " in said
    assert "of its windows had more than 10% of their minimisers in train" in said
    assert "are almost in others, dropped from train" in said and ", mostly in " in said
    other = config(genomes, tmp_path / "two", split={"val": 0.2})
    with pytest.raises(ValueError, match=r"holds another dataset \(it differs in split\)"):
        build(other)


@pytest.mark.usefixtures("local_ray")
def test_a_held_out_clade(genomes: dict[str, Path], tmp_path: Path) -> None:
    split = {"val": {"clade": "mammals"}, "test": {"clade": "birds"}}
    built = build(config(genomes, tmp_path / "o", split=split))
    assembly_of = {split: {block.assembly for _, block in built.manifest.blocks(split)} for split in SPLITS}
    assert assembly_of == {"train": {"other"}, "val": {"human", "mouse"}, "test": {"chicken"}}
    assert built.manifest.split["val"] == {"clade": ["mammals"], "assemblies": ["human", "mouse"]}
    assert built.manifest.bp("val") == 24_000 and built.divided == Divided(built.divided.plan)


def test_a_clade_is_trimmed_by_homology(genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: mouse stays, but for windows that are also in train."""
    wanted = config(genomes, split={"val": {"clade": "glires"}, "by": "homology"})
    found = divided(wanted, monkeypatch)
    assert found.families is None and found.splits
    val = found.splits["val"]
    assert val.wanted_bp is None and val.drawn_bp == 12_000 and val.trimmed_bp == 12_000 - val.kept_bp > 1000
    assert shared(wanted, found, "val", ("train",)) <= 0.1
    alone = {name: genomes[name] for name in ("mouse", "other")}
    without_kin = config(alone, split={"val": {"clade": "glires"}, "by": "homology"})
    kept = divided(without_kin, monkeypatch).splits
    assert kept and kept["val"].kept_bp == 12_000
    same = config(genomes | {"human": genomes["mouse"]}, split={"val": {"clade": "glires"}, "by": "homology"})
    with pytest.raises(ValueError, match=r"homology leaves nothing of val: its windows share more than 10%"):
        divided(same, monkeypatch)


def test_a_clade_and_a_share(genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kin = {name: genomes[name] for name in ("human", "mouse", "other")}
    extra = write(genomes["other"].parent / "extra.fa", some(12, 12_000))
    split = {"val": {"clade": "birds"}, "test": 0.2, "by": "homology"}
    wanted = config(kin | {"chicken": extra}, split=split)
    found = divided(wanted, monkeypatch)
    assert found.splits and found.splits["val"].wanted_bp is None and found.splits["test"].kept_bp > 0
    assert {span.assembly for span in found.plan.parts["val"]} == {"chicken"}
    assert "chicken" not in {span.assembly for span in found.plan.parts["test"]}


def test_dedup_reports_or_drops(genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    twice = {"human": genomes["human"], "again": genomes["human"], "other": genomes["other"]}
    wanted = config(twice, dedup="report", split={"val": ["human:two"], "leakage": "off"})
    reported = divided(wanted, monkeypatch)
    assert reported.duplicates and reported.duplicates.bp == 7000
    assert sum(span.bp for span in reported.plan.parts["train"]) == 31_000
    assert "dedup" not in reported.plan.manifest.split
    dropped = divided(config(twice, dedup="drop", split={"val": ["human:two"]}), monkeypatch)
    assert dropped.duplicates == reported.duplicates
    assert sum(span.bp for span in dropped.plan.parts["train"]) == 24_000
    assert sum(span.bp for span in dropped.plan.parts["val"]) == 5000, "a held-out block is no duplicate"


def test_all_n_is_drawn_by_nothing(genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = genomes["human"].parent / "n.fa"
    path.write_text(f">n\n{'N' * 5000}\n")
    found = divided(config(genomes | {"n": path}, split={"val": 0.2, "by": "homology"}), monkeypatch)
    assert found.families and found.families.blocks == 48 and found.plan.dropped == 5


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": "homology"}, "by homology holds nothing out, since val and test are 0; give one of them"),
        ({"by": "kin", "val": 0.1}, "input should be 'contigs' or 'homology'"),
        ({"val": {"clade": "fish"}}, "split.val: no reference has the clade 'fish'; there are birds, mam"),
        ({"test": {"clade": ["birds", "primate"]}}, "split.test: no reference has the clade 'primate'; "),
        ({"val": {"clade": []}}, "must name at least one clade"),
        ({"homology": {"k": 18}}, "must be odd, so that no k-mer is its own reverse complement, not 18"),
        (
            {"homology": {"window_bp": 28}},
            "window_bp 28 has no minimiser: 11 k-mers of 19 letters need 29 bp",
        ),
    ],
)
def test_a_mistake_in_the_split_is_one_sentence(split: dict[str, Any], message: str) -> None:
    references = [{"name": n, "uri": "a.fa", "clade": clade} for n, clade in CLADES.items()]
    with pytest.raises(ConfigError) as fault:
        validate(DataConfig, {"references": references, "output": "o", "split": split}, source="test")
    assert message in str(fault.value)


def test_no_reference_has_a_clade() -> None:
    with pytest.raises(ConfigError, match=r"no reference has the clade 'fish'; none has the key clade"):
        validate(
            DataConfig,
            {"references": [{"name": "a", "uri": "a"}], "output": "o", "split": {"val": {"clade": "fish"}}},
            source="test",
        )


def test_what_is_of_no_use_is_refused(genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"k": 11, "window": 6, "window_bp": 200}
    many = genomes | {f"x{i}": genomes["other"] for i in range(4)}
    wanted = config(many, split={"val": 0.1, "by": "homology", "homology": small})
    with pytest.raises(ValueError, match=r"split.homology.k 11 is too small for .* take k 13 or more"):
        divided(wanted, monkeypatch)
    both = config(genomes, split={"val": {"clade": "mammals"}, "test": {"clade": "primates"}})
    with pytest.raises(ValueError, match=r"split: human:one:0-7000 in both val and test"):
        divided(both, monkeypatch)
    short = genomes["human"].parent / "short.fa"
    short.write_text(f">one\n{decode(some(3, 3000)).decode()}\n")
    all_near = config({"human": short}, split={"val": 0.4, "by": "homology", "gap": 20_000})
    with pytest.raises(ValueError, match=r"of 3 blocks the homology split or dedup takes every one"):
        divided(all_near, monkeypatch)


def test_the_shipped_config_holds_out_a_clade(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = load(DataConfig, ROOT / "configs/data/encode-clades.yaml")
    assert len(shipped.references) == 44 and all(reference.clade for reference in shipped.references)
    assert isinstance(shipped.split.val, CladeSplit)
    species = {name.split(".")[0] for name in shipped.of_clade(shipped.split.val)}
    assert species == {"fugu", "tetraodon", "zebrafish"}
    assert sum(reference.is_in("primates") for reference in shipped.references) == 12


def test_real_species(dna_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one region of primates are one family, and those of the chicken are held out."""
    names = ("human", "chimp", "mouse", "chicken")
    files = {name: dna_data / f"genomes/encode/ENm002_{name}.fa.gz" for name in names}
    split = {"val": {"clade": "birds"}, "test": 0.1, "by": "homology", "homology": {}, "min_bp": 1024}
    found = divided(config(files, block_bp=65_536, shard_bp=1 << 22, split=split), monkeypatch)
    assert found.families and found.splits
    assert found.families.largest_bp > 1_000_000, "human and chimp"
    assert found.splits["val"].kept_bp > 0.9 * found.splits["val"].drawn_bp
    assert found.splits["test"].cut and found.splits["test"].buffer_bp > 65_536


def test_numbers_of_a_split_are_plain(genomes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What build.json gets is JSON."""
    wanted = config(genomes, split={"val": 0.2, "by": "homology"}, dedup="report")
    info = divided(wanted, monkeypatch).info()
    assert json.loads(json.dumps(info)).keys() == {"homology", "dedup"}
    assert info["homology"]["splits"]["val"]["windows"] > 1000
