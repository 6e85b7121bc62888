"""Tasks of kind ``variants``: what orders variants as their measured effects do, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import configs
from data_prep import alphabet
from data_prep.sources import reference
from tests.registered import CANDIDATE, NAME, Registered, registered, registry
from trainer.evaluation.online.rows import read_tasks
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.kmer_change import kmer_changes, log_frequencies
from trainer.evaluation.tasks.fitting.scalar import fit_scalar
from trainer.evaluation.tasks.fitting.variant_effects import variant_effects
from trainer.evaluation.tasks.kinds.variants import Variants
from trainer.evaluation.tasks.results.results_log import past_results
from trainer.evaluation.tasks.rows.data import Split, load
from trainer.evaluation.tasks.rows.variant import VariantRow
from trainer.finetune import main
from trainer.inference.registered_model import open_model
from trainer.inference.variants import vcf
from trainer.inference.variants.windows import Placed, Site

ROLES = ("train", "dev", "test")
BP = 4000


@pytest.fixture
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return registered(tmp_path_factory)


def letters_of(rng: np.random.Generator, count: int) -> str:
    return "".join(rng.choice(list("ACGT"), count, p=[0.35, 0.15, 0.15, 0.35]))


class Bench:
    """A genome and a table of its substitutions, one at each of some positions; effects come later."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(5)
        self.folder, self.genome = folder, letters_of(rng, BP)
        (folder / "genome.fa").write_text(f">chr1\n{self.genome}\n")
        self.places = sorted(rng.choice(np.arange(100, BP - 100), 240, replace=False).tolist())
        self.alts = [str(rng.choice([a for a in "ACGT" if a != self.genome[at]])) for at in self.places]
        self.windows = [(at // 200 * 200, at // 200 * 200 + 200) for at in self.places]

    def write(self, effects: Sequence[object], *, chrom: str = "1", extra: Sequence[str] = ()) -> Path:
        head = "chrom\tpos\tref\talt\teffect\tfrom\tto"
        rows = [
            "\t".join(map(str, (chrom, at + 1, self.genome[at], alt, effect, *window)))
            for at, alt, effect, window in zip(self.places, self.alts, effects, self.windows, strict=True)
        ]
        for role, part in zip(ROLES, (rows[:80], rows[80:160], rows[160:]), strict=True):
            (self.folder / f"{role}.tsv").write_text("\n".join([head, *part, *extra]) + "\n")
        files = "".join(f"{role}: {self.folder / role}.tsv\n" for role in ROLES)
        path = self.folder / "task.yaml"
        path.write_text(
            f"name: mpra\nkind: variants\n{files}reference: {self.folder / 'genome.fa'}\n"
            "label_column: effect\nvariant: {length: 60, window_columns: [from, to]}\n"
            "kmer: {k: 3}\nprobe: {precision: fp32}\n"
        )
        return path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def task_of(path: Path, *overrides: str) -> TaskConfig:
    return configs.load(TaskConfig, path, overrides)


def rows_of(
    path: Path, where: Registered, folder: Path, *overrides: str
) -> dict[str, dict[str, str | float]]:
    kept = folder / "rows.json"
    command = ["--model", CANDIDATE, "--track-uri", where.uri, "--json", str(kept), "--task", str(path)]
    assert main([*command, *overrides]) == 0
    return {row["mode"]: row for row in json.loads(kept.read_text())}


def test_each_mode_finds_the_effect_that_it_can_see(
    where: Registered, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load(task_of(bench.write([0, 1] * 120)))
    assert [len(split) for split in data.splits] == [80, 80, 80]
    network = open_model(registry(where), CANDIDATE).network
    rows = [row for split in data.splits for row in split.variants]
    llr_N = variant_effects(network, rows, length=60, precision="fp32", strand="both").by_name["llr"]
    ranks = scipy.stats.rankdata(-llr_N)
    found = rows_of(bench.write(ranks), where, tmp_path, "name=seen")
    assert list(found) == ["kmer", "centre", "zeroshot", "probe"]
    assert found["zeroshot"]["test/spearman"] == pytest.approx(1, abs=1e-6)
    assert found["zeroshot"]["test/auroc"] == pytest.approx(1, abs=1e-6)
    assert found["zeroshot"]["chosen"] == "number -llr"
    assert found["probe"]["test/spearman"] > 0.9, "llr is one of its features"
    assert abs(found["centre"]["test/spearman"]) < 0.5
    out, err = capsys.readouterr()
    assert "test Spearman ρ × 100" in out and "AUROC" in out
    assert "240 variants" not in err and "contig 1 of" not in out
    stored = [r for r in past_results(registry(where), NAME, "1") if r.unit.task == "seen"]
    assert [r.unit.mode for r in stored] == ["kmer", "centre", "zeroshot", "probe"]

    distance = [
        abs(at + 0.5 - sum(window) / 2) for at, window in zip(bench.places, bench.windows, strict=True)
    ]
    found = rows_of(bench.write(distance), where, tmp_path, "name=far", "modes=[centre,kmer]")
    assert found["centre"]["test/spearman"] == pytest.approx(1)
    assert found["centre"]["chosen"] == "number distance"


def test_effects_may_be_two_labels(where: Registered, bench: Bench, tmp_path: Path) -> None:
    gains = ["harmful" if alt in "CG" else "benign" for alt in bench.alts]
    path = bench.write(gains)
    found = rows_of(path, where, tmp_path, "labels=[benign,harmful]", "modes=[kmer]", "name=gc")
    assert found["kmer"]["chosen"] == "number -change", "C and G are rare in the genome"
    assert found["kmer"]["test/auroc"] > 0.85


def test_kmer_changes_are_those_of_a_naive_loop() -> None:
    rng = np.random.default_rng(2)
    windows = [letters_of(rng, 40) for _ in range(6)]
    k = 3
    count: dict[str, int] = {}
    for window in windows:
        other = window.translate(str.maketrans("ACGT", "TGCA"))[::-1]
        for text in (window, other):
            for at in range(len(text) - k + 1):
                count[text[at : at + k]] = count.get(text[at : at + k], 0) + 1
    total = sum(count.values()) + 4**k
    cases = [(10, 11, "G"), (10, 12, "A"), (7, 7, "CCA"), (39, 40, "T"), (0, 2, "")]
    rows, wanted = [], []
    for window, (start, end, alt) in zip(windows, cases, strict=False):
        codes = alphabet.encode(window.encode())[0].tobytes()
        rows.append(
            VariantRow(Placed(Site(codes, start, end), alphabet.encode(alt.encode())[0].tobytes()), 0)
        )
        before, behind = window[max(0, start - k + 1) : start], window[end : end + k - 1]
        means = []
        for allele in (window[start:end], alt):
            text = before + allele + behind
            kmers = [text[at : at + k] for at in range(len(text) - k + 1)]
            means.append(
                np.mean([np.log((count.get(kmer, 0) + 1) / total) for kmer in kmers]) if kmers else None
            )
        wanted.append(0 if None in means else means[1] - means[0])
    found_N = kmer_changes(rows, log_frequencies(windows, k=k), k=k)
    np.testing.assert_allclose(found_N, wanted, atol=1e-12)


def test_a_number_is_read_on_test_as_dev_chose_it_whatever_its_signs_there() -> None:
    def split(role: str, truth: list[float]) -> Split:
        return Split(role, ("ACGT",) * len(truth), np.array(truth))

    dev, test = split("dev", [1, 2, 3, 4]), split("test", [1, 2])
    numbers = {"dev": np.array([-0.1, 0.2, -0.3, 0.4]), "test": np.array([0.1, 0.2])}
    kind = Variants(()).fit(dev.truth_N)
    fitted = fit_scalar(dev, numbers=lambda split: {"llr": numbers[split.role]}, kind=kind)
    assert fitted.chosen == {"number": "|llr|"}
    np.testing.assert_array_equal(fitted.predict(test), [0.1, 0.2])
    np.testing.assert_array_equal(fitted.dev_prediction, [0.1, 0.2, 0.3, 0.4])


def test_scores_of_what_tells_nothing_apart() -> None:
    kind = Variants(()).fit(np.array([0.0, 1.0, 2.0]))
    truth_N = np.array([0.0, 3.0, 1.5])
    assert kind.score(truth_N, np.zeros(3)) == {"spearman": 0.0, "auroc": 0.5}
    assert kind.score(truth_N, truth_N) == {"spearman": pytest.approx(1), "auroc": 1.0}
    assert kind.score(np.array([2.0, 3.0]), np.array([1.0, 0.0])) == {
        "spearman": pytest.approx(-1),
        "auroc": 0.5,
    }


def test_a_vcf_has_the_effects_in_info(bench: Bench) -> None:
    table = load(task_of(bench.write(range(240))))
    head = ["##fileformat=VCFv4.2", "\t".join(vcf.COLUMNS)]
    for role in ROLES:
        lines = [line.split("\t") for line in (bench.folder / f"{role}.tsv").read_text().splitlines()[1:]]
        rows = [
            f"{chrom}\t{pos}\t.\t{ref}\t{alt},*\t.\t.\tX;effect={effect},9;from={start};to={end}"
            for chrom, pos, ref, alt, effect, start, end in lines
        ]
        (bench.folder / f"{role}.vcf").write_text("\n".join([*head, *rows]) + "\n")
    files = [f"{role}={bench.folder / role}.vcf" for role in ROLES]
    found = load(task_of(bench.folder / "task.yaml", *files))
    for ours, theirs in zip(found.splits, table.splits, strict=True):
        assert (ours.letters, ours.variants) == (theirs.letters, theirs.variants)
        np.testing.assert_array_equal(ours.truth_N, theirs.truth_N)
    assert "80 variants are left out: 80 an allele that an upstream deletion takes away" in found.remarks[0]
    for change, message in (
        ((",9;", ";"), ""),
        ((",9;", ",9,8;"), r"train.vcf, line 3: effect has 3 values, and ALT 2 alleles; one for all or one"),
        (("effect=", "other="), r"train.vcf, line 3: INFO has no 'effect'; give the right name"),
        (("to=", "to=x"), r"train.vcf, line 3: to is 'x\d+', and must be a whole number"),
    ):
        text = (bench.folder / "train.vcf").read_text()
        (bench.folder / "odd").mkdir(exist_ok=True)
        (bench.folder / "odd" / "train.vcf").write_text(text.replace(*change, 1))
        task = task_of(bench.folder / "task.yaml", *files, f"train={bench.folder / 'odd' / 'train.vcf'}")
        if not message:
            assert len(load(task).train) == 80, "one effect for both alleles"
            continue
        with pytest.raises(ValueError, match=message):
            load(task)


def test_variants_that_cannot_be_scored_are_left_out_and_told_of(bench: Bench) -> None:
    wrong = "A" if bench.genome[49] != "A" else "C"
    extra = [f"chr1\t50\t{wrong}\tT\t1\t0\t200", "chr7\t50\tA\tT\t1\t0\t200", "chr1\t60\tA\t<DEL>\t1\t0\t200"]
    data = load(task_of(bench.write([0, 1] * 120, extra=extra)))
    assert [len(split) for split in data.splits] == [80, 80, 80]
    (remark,) = [remark for remark in data.remarks if "train.tsv" in remark]
    assert "3 variants are left out: " in remark
    for words in ("1 reference mismatch", "1 the reference has no such contig", "1 a symbolic allele"):
        assert words in remark


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modes=[finetune]"], "modes: kind variants has no finetune; it has kmer, centre, zeroshot, probe"),
        (["reference=null"], "reference: kind variants needs the genome that the variants are on"),
        (["labels=[a,b,c]"], "labels: effects of variants are numbers, without labels, or two labels"),
        (["kind=regression"], "variant: kind regression reads no variants; remove the section"),
        (["label_column=[a,b]"], "label_column: kind variants reads one column"),
    ],
)
def test_mistakes_of_the_config(bench: Bench, overrides: list[str], message: str) -> None:
    path = bench.write([0, 1] * 120)
    with pytest.raises(configs.ConfigError, match=message.replace("(", r"\(")):
        task_of(path, *overrides)


def test_other_kinds_have_no_mode_of_variants(bench: Bench) -> None:
    with pytest.raises(configs.ConfigError, match="modes: kind classification has no zeroshot; it has kmer"):
        configs.validate(
            TaskConfig,
            {"name": "t", "test": "x.csv", "labels": ["a", "b"], "modes": ["zeroshot"]},
            source="test",
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("\tpos\t", "\tplace\t"), r"train.tsv has no column 'pos'"),
        (("\t101\t", "\tx1\t"), r"train.tsv, line 2: pos is 'x1', and must be a whole number"),
        (("\t7\t0\t", "\tseven\t0\t"), r"train.tsv, line 2: label 'seven' is no finite number"),
        (("\t0\t200\n", "\tzero\t200\n"), r"train.tsv, line 2: from is 'zero', and must be a whole number"),
    ],
)
def test_mistakes_of_a_table(bench: Bench, change: tuple[str, str], message: str) -> None:
    bench.places[0], bench.windows[0] = 100, (0, 200)
    bench.alts[0] = "A" if bench.genome[100] != "A" else "C"
    path = bench.write([7, 1] * 120)
    text = (bench.folder / "train.tsv").read_text()
    assert change[0] in text
    (bench.folder / "train.tsv").write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=message):
        load(task_of(path))


def test_a_file_without_a_variant_that_can_be_scored_is_refused(bench: Bench) -> None:
    path = bench.write([0, 1] * 120, chrom="chr9")
    with pytest.raises(
        ValueError, match=r"no variant that can be scored \(80 the reference has no such contig"
    ):
        load(task_of(path))
    assert reference.locate(str(bench.folder / "genome.fa")).contigs == {"chr1": BP}


def test_they_are_not_read_during_pretraining(bench: Bench) -> None:
    path = bench.write([0, 1] * 120)
    with pytest.raises(configs.ConfigError, match="is of kind variants, which is not read"):
        read_tasks([str(path)], most=100)


def test_effects_of_a_split_are_those_of_parts_of_it(where: Registered, bench: Bench) -> None:
    network = open_model(registry(where), CANDIDATE).network
    rows = load(task_of(bench.write([0, 1] * 120))).test.variants
    whole = variant_effects(network, rows, length=60, precision="fp32", strand="both")
    part = variant_effects(network, rows[30:40], length=60, precision="fp32", strand="both")
    for name, values_N in part.by_name.items():
        np.testing.assert_array_equal(values_N, whole.by_name[name][30:40])
    assert torch.from_numpy(whole.difference_ND).shape == (80, network.backbone.hidden_size)
