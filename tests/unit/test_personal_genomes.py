"""Haplotypes as assemblies of a dataset: their letters, what is held out, and partners at exact places."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import ConfigError, load
from data_prep.alphabet import decode, encode
from data_prep.config import DataConfig
from data_prep.dataset.build import Built, build
from data_prep.dataset.leaks import dataset_leakage
from data_prep.dataset.partner_checks import read_table
from data_prep.dataset.partners import Layout
from data_prep.dataset.plan import Plan, make_plan
from data_prep.dataset.read import blocks, load_manifest, packed_blocks
from data_prep.dataset.references import prepare_all
from data_prep.dataset.runner import Runner
from data_prep.dataset.verify import verify
from data_prep.partners import IDENTITY_UNIT, PartnerTable
from data_prep.split.intervals import subtract
from tests.haplotypes import Variant, applied, random_variants, write_fasta, write_vcf
from tests.unit.test_filters import bed
from tests.unit.test_partner_windows import FLANK, LENGTH, partner_of, reader
from trainer.data.config import Regions
from trainer.data.dataset import Dataset
from trainer.data.regions import open_regions

NAMES = ("ref", "ref.HG1.1", "ref.HG1.2")


class Genome:
    """A reference, the variants of a sample, and what stands in place of each of its letters in each
    haplotype."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(5)
        self.letters = {
            name: "".join(rng.choice(list("ACGTacgt"), bp))
            for name, bp in (("chrA", 30_000), ("chrB", 9_000))
        }
        self.letters["chrA"] = self.letters["chrA"][:700] + "N" * 40 + self.letters["chrA"][740:]
        self.variants: list[Variant] = []
        self.out: dict[str, dict[str, list[str]]] = {name: {} for name in NAMES}
        for contig, letters in self.letters.items():
            own = random_variants(rng, letters.replace("N", "A"), contig=contig, rate=0.02, longest=30)
            own = [v for v in own if "N" not in letters[max(0, v.start - 1) : v.start + len(v.ref)]]
            self.variants += own
            for number, name in enumerate(NAMES):
                self.out[name][contig] = applied(letters, own, number) if number else list(letters)
        self.uri = write_fasta(folder / "ref.fa", self.letters)
        sizes = {name: len(letters) for name, letters in self.letters.items()}
        self.vcf = write_vcf(folder / "HG1.vcf.gz", self.variants, sizes, "HG1")
        # Haplotype, contig -> where each edge between letters of the reference is in it.
        self.edge = {
            name: {c: np.cumsum([0, *map(len, out)]) for c, out in own.items()}
            for name, own in self.out.items()
        }

    def text(self, name: str, contig: str) -> str:
        return "".join(self.out[name][contig])

    def place(self, one: str, other: str, contig: str, at: int) -> int:
        """Where letter ``at`` of ``one`` is in ``other``; -1 where that is not told by single letters."""
        edge, there = self.edge[one][contig], self.edge[other][contig]
        base = int(np.searchsorted(edge, at, "right")) - 1
        first = edge[base] == at
        return int(there[base]) if first and there[base + 1] > there[base] else -1

    def config(self, output: Path | str = "o", **changes: Any) -> DataConfig:
        variants = {"vcf": self.vcf, "samples": ["HG1"]} | changes.pop("variants", {})
        reference = {"name": "ref", "uri": self.uri, "variants": variants} | changes.pop("reference", {})
        values = {
            "references": [reference],
            "output": str(output),
            "block_bp": 4096,
            "shard_bp": 16_384,
            "split": {"val": ["chrB"], "leakage": "off"},
            "workers": 1,
        }
        return DataConfig.model_validate(values | changes)

    def planned(self, **changes: Any) -> Plan:
        config = self.config(**changes)
        return make_plan(config, prepare_all(config.references, Runner(1, lambda *_: None, lambda _: None)))

    def lifted(self, name: str, contig: str, intervals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        edge = self.edge[name][contig]
        return [(int(edge[start]), int(edge[end])) for start, end in intervals]


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    return Genome(tmp_path_factory.mktemp("personal"))


@pytest.fixture(scope="module")
def built(genome: Genome, tmp_path_factory: pytest.TempPathFactory, local_ray: int) -> tuple[str, Built]:
    folder = tmp_path_factory.mktemp("dataset") / "d"
    return str(folder), build(genome.config(folder, partners={"between": ["ref*"]}))


def of(plan: Plan, split: str, name: str, contig: str) -> list[tuple[int, int]]:
    """What ``split`` has of a contig of an assembly, merged."""
    merged: list[tuple[int, int]] = []
    for span in plan.parts[split]:
        if span.place == (name, contig):
            if merged and merged[-1][1] == span.start:
                merged[-1] = merged[-1][0], span.end
            else:
                merged.append((span.start, span.end))
    return merged


def test_the_dataset_has_the_letters_of_each_haplotype(genome: Genome, built: tuple[str, Built]) -> None:
    uri, result = built
    manifest = load_manifest(uri)
    assert [source.name for source in manifest.sources] == list(NAMES)
    for source in manifest.sources:
        assert source.contigs == {c: len(genome.text(source.name, c)) for c in genome.letters}
    for split, contig in (("train", "chrA"), ("val", "chrB")):
        text = dict.fromkeys(NAMES, b"")
        for block, codes, mask in blocks(uri, manifest, split):
            assert block.contig == contig
            text[block.assembly] += decode(codes, mask)
        for name in NAMES:
            assert text[name].decode().upper() == genome.text(name, contig).upper()
        assert text["ref"].decode().replace("n", "N") == genome.letters[contig]
    assert verify(uri) == []
    own = manifest.sources[1]
    assert own.filters["haplotype"] == {"reference": "ref", "sample": "HG1", "number": 1}
    assert "haplotype" not in manifest.sources[0].filters
    left = [text for text in result.warnings if "records of its VCF are applied" in text]
    assert len(left) == 2 and left[0].startswith("reference ref.HG1.1: ") and "without a genotype" in left[0]
    assert not build(genome.config(uri, partners={"between": ["ref*"]})).fresh


def test_without_its_reference_the_haplotypes_are_the_same(
    genome: Genome, built: tuple[str, Built], tmp_path: Path
) -> None:
    plan = genome.planned(variants={"keep_reference": False, "haplotypes": [2]})
    (source,) = plan.manifest.sources
    assert source == load_manifest(built[0]).sources[2]
    everything = genome.planned(split={"val": 0.2, "leakage": "off"})
    alone = genome.planned(variants={"keep_reference": False}, split={"val": 0.2, "leakage": "off"})
    for split in ("train", "val"):
        own = [span for span in everything.parts[split] if span.assembly != "ref"]
        assert own and alone.parts[split] == own, "drawn among the blocks of the reference"


def test_names_of_contigs_hold_out_the_same_in_all_or_warn(genome: Genome) -> None:
    plan = genome.planned()
    assert {span.place for span in plan.parts["val"]} == {(name, "chrB") for name in NAMES}
    assert not [text for text in plan.warnings if "holds it out" in text]
    for name in ("ref:chrB", "ref.HG1.2:chrB"):
        held = name.partition(":")[0]
        (said,) = [text for text in genome.planned(split={"val": [name]}).warnings if "holds it out" in text]
        first = next(other for other in NAMES if other != held)
        assert f"(the first: {first}:chrB, what is 0-9000 of ref; {held} holds it out)" in said
        assert said.startswith(
            f"train has {9000 + len(genome.text('ref', 'chrB')):,} bp of places that another"
        )
    plan = genome.planned(split={"val": ["B"]})
    assert {span.place for span in plan.parts["val"]} == {(name, "chrB") for name in NAMES}
    with pytest.raises(ValueError, match=r"split\.val: no contig matches 'chrQ'; there are chrA, chrB"):
        genome.planned(split={"val": ["chrQ"]})


@pytest.mark.parametrize("gap", [0, 100])
def test_a_bed_holds_out_the_same_place_in_all(genome: Genome, tmp_path: Path, gap: int) -> None:
    edges = [v.start for v in genome.variants if v.contig == "chrA"][20:300:7]
    val = [(a, a + 90 + i) for i, a in enumerate(edges[::3])]
    val = [(a, b) for (a, b), (c, _) in zip(val, [*val[1:], (1 << 30, 0)], strict=True) if b < c]
    test = [(b, b + 1) for _, b in val]
    split: dict[str, Any] = {"gap": gap, "leakage": "off"}
    for name, intervals in (("val", val), ("test", test)):
        lines = "".join(f"chrA\t{a}\t{b}\n" for a, b in intervals)
        split[name] = {"bed": bed(tmp_path, lines, f"{name}.bed")}
    plan = genome.planned(split=split)
    for name in NAMES:
        for part, intervals in (("val", val), ("test", test)):
            expected = [(a, b) for a, b in genome.lifted(name, "chrA", intervals) if a < b]
            found = of(plan, part, name, "chrA")
            assert found == expected, (name, part)
    assert not [text for text in plan.warnings if "holds it out" in text]
    again = {"val": {"bed": bed(tmp_path, "chrA\t10\t20\tref.HG1.1\nchrA\t500\t600\n", "own.bed")}, "gap": 0}
    plan = genome.planned(split=again)
    assert of(plan, "val", "ref.HG1.1", "chrA") == [
        (10, 20),
        *genome.lifted("ref.HG1.1", "chrA", [(500, 600)]),
    ]
    assert of(plan, "val", "ref", "chrA") == [(500, 600)]
    assert [text for text in plan.warnings if "train has" in text and "ref.HG1.1 holds it out" in text]


def test_a_share_is_the_same_place_in_all(genome: Genome) -> None:
    plan = genome.planned(split={"val": 0.2, "test": 0.1, "leakage": "off", "gap": 0})
    for split in ("val", "test"):
        for contig in genome.letters:
            drawn = of(plan, split, "ref", contig)
            for name in NAMES:
                assert of(plan, split, name, contig) == genome.lifted(name, contig, drawn)
    assert of(plan, "val", "ref", "chrA"), "something is drawn"
    assert not [text for text in plan.warnings if "holds it out" in text]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("drawn", ["val", "test"])
def test_a_share_is_drawn_beside_what_the_other_split_has(
    genome: Genome, tmp_path: Path, keep: bool, drawn: str
) -> None:
    """By a BED, also of one haplotype alone, by names, and by a clade; with the reference and without."""
    given = "test" if drawn == "val" else "val"
    made = partial(genome.planned, variants={"keep_reference": keep})
    both = {"leakage": "off", "gap": 0, drawn: 0.4}
    whole = made(split=both)
    file = bed(tmp_path, "chrA\t6000\t15000\nchrA\t20000\t20500\tref.HG1.1\n")
    for held in ({"bed": file}, ["chrB"], ["ref.HG1.1:chrB"]):
        plan = made(split=both | {given: held})
        for name in NAMES[1:]:
            for contig in genome.letters:
                theirs = of(plan, given, name, contig)
                rest = subtract(of(whole, drawn, name, contig), theirs)
                assert of(plan, drawn, name, contig) == rest, (name, contig, held)
        assert of(plan, given, "ref.HG1.1", "chrA" if held == {"bed": file} else "chrB")
    other = {"name": "other", "uri": write_fasta(tmp_path / "o.fa", {"one": "ACGT" * 5000})}
    wanted = genome.config(reference={"clade": "mammals"}, variants={"keep_reference": keep})
    values = wanted.model_dump(mode="json")
    values |= {"references": [*values["references"], other], "split": both | {given: {"clade": "mammals"}}}
    config = DataConfig.model_validate(values | {"block_bp": 1024})
    plan = make_plan(config, prepare_all(config.references, Runner(1, lambda *_: None, lambda _: None)))
    assert {span.assembly for span in plan.parts[drawn]} == {"other"}
    assert {span.assembly for span in plan.parts[given]} == set(NAMES if keep else NAMES[1:])


def test_a_haplotype_has_the_clade_of_its_reference(genome: Genome, tmp_path: Path, local_ray: int) -> None:
    """In the report of a build, and in one on the dataset."""
    other = {"name": "other", "uri": write_fasta(tmp_path / "o.fa", {"one": "ACGT" * 500}), "clade": "birds"}
    variants = {"keep_reference": False}
    config = genome.config(
        tmp_path / "d", variants=variants, reference={"clade": "mammals"}, split={"val": ["chrB"]}
    )
    wanted = config.model_dump(mode="json")
    build(DataConfig.model_validate(wanted | {"references": [*wanted["references"], other]}))
    report = json.loads((tmp_path / "d" / "leakage.json").read_bytes())
    assert report["clades"]["held_out"] == ["mammals"] and report["clades"]["train"] == ["birds", "mammals"]
    assert report == json.loads(json.dumps(dataset_leakage(str(tmp_path / "d"), workers=1).to_dict()))


def test_filters_are_of_the_same_place(genome: Genome, tmp_path: Path) -> None:
    intervals = [(v.start, v.start + 333) for v in genome.variants if v.contig == "chrA"][10:400:40]
    file = bed(tmp_path, "".join(f"chrA\t{a}\t{b}\n" for a, b in intervals))
    plan = genome.planned(reference={"include": [file], "contigs": ["chrA"]}, split={})
    for name in NAMES:
        assert of(plan, "train", name, "chrA") == genome.lifted(name, "chrA", intervals)
    plan = genome.planned(reference={"exclude": [file], "contigs": ["A"]}, split={})
    edges = [0, *(edge for interval in intervals for edge in interval), len(genome.letters["chrA"])]
    rest = list(zip(edges[::2], edges[1::2], strict=True))
    for name in NAMES:
        assert of(plan, "train", name, "chrA") == genome.lifted(name, "chrA", rest)


def test_repeats_and_tracks_are_of_the_same_letters(genome: Genome, tmp_path: Path, local_ray: int) -> None:
    rng = np.random.default_rng(2)
    edges = np.unique(rng.integers(0, 30_000, 4000)).tolist()
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    masked = bed(tmp_path, "".join(f"chrA\t{a}\t{b}\n" for a, b in spans), "repeats.bed")
    scores = "".join(f"chrA\t{a}\t{b}\t{i % 2}\n" for i, (a, b) in enumerate(spans))
    track = {"uri": bed(tmp_path, scores, "track.bedgraph"), "kind": "bedgraph", "high": 1, "levels": 2}
    own = {"repeats": {"uri": [masked], "mode": "replace"}, "track": track}
    build(genome.config(tmp_path / "d", reference=own))
    assert verify(str(tmp_path / "d")) == []
    is_masked, is_high = np.zeros((2, 30_000), np.bool_)
    for i, (a, b) in enumerate(spans):
        is_masked[a:b], is_high[a:b] = True, i % 2
    manifest = load_manifest(str(tmp_path / "d"))
    for name in NAMES:
        origin = np.repeat(np.arange(30_000), [len(part) for part in genome.out[name]["chrA"]])
        seen = 0
        for shard in manifest.shards["train"]:
            for block, packed in packed_blocks(str(tmp_path / "d" / shard.name), shard):
                if block.assembly != name:
                    continue
                place = origin[block.start : block.end]
                assert np.array_equal(packed.soft_mask(0, packed.bases), is_masked[place])
                levels = packed.weights(0, packed.bases)
                assert levels is not None and np.array_equal(levels > 0, is_high[place])
                seen += block.bp
        assert seen == len(origin)


def rows(table: PartnerTable) -> dict[tuple[str, str], list[tuple[str, int, int]]]:
    """(assembly, partner's) -> (contig, position, partner's position) of each anchor."""
    found: dict[tuple[str, str], list[tuple[str, int, int]]] = {}
    for chain, at, partner_at in zip(
        table.chain_of.tolist(), table.at_N.tolist(), table.partner_at_N.tolist(), strict=True
    ):
        (one, contig), (other, there) = (
            table.places[int(number[chain])] for number in (table.place_C, table.partner_C)
        )
        assert contig == there
        found.setdefault((one, other), []).append((contig, at, partner_at))
    return found


def test_partners_are_at_exact_places_in_train_alone(genome: Genome, built: tuple[str, Built]) -> None:
    uri, _ = built
    table = read_table(uri, load_manifest(uri))
    assert table
    found = rows(table)
    assert sorted(found) == [(NAMES[0], NAMES[1]), (NAMES[0], NAMES[2]), (NAMES[1], NAMES[2])]
    assert not table.reversed_C.any()
    for (one, other), anchors in found.items():
        assert {contig for contig, _, _ in anchors} == {"chrA"}, "chrB is held out"
        assert all(genome.place(one, other, contig, at) == there for contig, at, there in anchors)
        at = [row[1] for row in anchors]
        there = [row[2] for row in anchors]
        between = np.rint(np.interp(np.arange(at[-1] + 1), at, there)).astype(int)
        for place in range(at[0], at[-1], 7):
            expected = genome.place(one, other, "chrA", place)
            assert expected in (-1, between[place]), "between anchors, too"
        (chain,) = np.flatnonzero(
            (table.place_C == table.places.index((one, "chrA")))
            & (table.partner_C == table.places.index((other, "chrA")))
        )
        mine, theirs = (encode(genome.text(name, "chrA").encode())[0] for name in (one, other))
        pairs = [(i, genome.place(one, other, "chrA", i)) for i in range(len(mine))]
        known = [(mine[i], theirs[j]) for i, j in pairs if j >= 0 and mine[i] < 4 and theirs[j] < 4]
        same = sum(a == b for a, b in known)
        assert table.identity_C[chain] == pytest.approx(same * IDENTITY_UNIT / len(known), abs=2)


def test_chains_end_where_something_is_held_out(genome: Genome, tmp_path: Path, local_ray: int) -> None:
    file = bed(tmp_path, "chrA\t7000\t9000\nchrA\t20000\t20500\tref.HG1.1\n")
    config = genome.config(
        tmp_path / "d", partners={"between": ["ref*"]}, split={"val": {"bed": file}, "leakage": "off"}
    )
    build(config)
    assert verify(str(tmp_path / "d")) == []
    manifest = load_manifest(str(tmp_path / "d"))
    table = read_table(str(tmp_path / "d"), manifest)
    assert table and Layout.of(manifest).bp
    for pair, anchors in rows(table).items():
        assert all(genome.place(*pair, contig, at) == there for contig, at, there in anchors)
    spans = {
        (table.places[one][0], table.places[other][0]): int(count)
        for one, other, count in zip(
            *np.unique(np.stack([table.place_C, table.partner_C]), axis=1, return_counts=True)[0],
            np.unique(np.stack([table.place_C, table.partner_C]), axis=1, return_counts=True)[1],
            strict=True,
        )
        if table.places[one][1] == "chrA"
    }
    assert spans == {(NAMES[0], NAMES[1]): 3, (NAMES[0], NAMES[2]): 2, (NAMES[1], NAMES[2]): 3}


def test_the_teacher_reads_the_haplotype_of_the_same_place(genome: Genome, built: tuple[str, Built]) -> None:
    data = Dataset(built[0], "train")
    contig_of = {data.locus(i)[0]: block.assembly for i, (_, block) in enumerate(data.blocks)}
    inside = [(block.assembly, block.start, block.end) for _, block in data.blocks]
    read = reader([built[0]], share=1.0)
    compared = 0
    for batch in map(read.batch, range(10)):
        partner = partner_of(batch)
        for row in range(len(partner.place_B3)):
            contig, start, end = batch.windows.place_B3[row].tolist()
            other, there, until = partner.place_B3[row].tolist()
            one, two = contig_of[contig], contig_of[other]
            if one == two:
                continue
            middle = (start + end) // 2
            expected = genome.place(one, two, "chrA", middle)
            if expected < 0:
                continue
            low, high = next((a, b) for name, a, b in inside if name == two and a <= expected < b)
            first = np.clip(expected - (middle - start), low + FLANK, high - LENGTH - FLANK)
            assert (there, until) == (first, first + LENGTH), (one, two, start)
            letters = genome.text(two, "chrA")[there:until]
            assert decode(partner.codes_BS[row, FLANK : FLANK + LENGTH].numpy()).decode() == letters.upper()
            compared += 1
    assert compared > 150


def regions_of(uri: str, file: str, said: list[str]) -> set[tuple[str, int, int]]:
    """(assembly, start, end) of each piece of the train split's regions."""
    data = Dataset(uri, "train")
    chosen = Regions.model_validate({"beds": [{"uri": file}]})
    ((found,),) = (each.by_dataset for each in open_regions(chosen, [data], warn=said.append))
    assert found
    pieces = set()
    for number, start, bp in zip(found.block_P, found.start_P, found.bp_P, strict=True):
        block = data.blocks[int(number)][1]
        pieces.add((block.assembly, block.start + int(start), block.start + int(start) + int(bp)))
    return pieces


def test_regions_are_in_the_coordinates_of_references(built: tuple[str, Built], tmp_path: Path) -> None:
    said: list[str] = []
    file = bed(tmp_path, "chrA\t20500\t20600\nchrB\t0\t9\n")
    assert regions_of(built[0], file, said) == {("ref", 20500, 20600)}
    advice = "a line in a haplotype's own coordinates may name it in the fourth column"
    left_out = f"for references alone, and not for haplotypes (ref.HG1.1, ref.HG1.2): {advice}"
    assert said == [
        f"data.regions.beds: 1 of 2 lines of {file} give no window: 1 held out or left out (chrB)",
        f"data.regions.beds: 2 of 2 lines of {file} name no assembly, so they count {left_out}",
    ]
    said.clear()
    file = bed(tmp_path, "chrA\t20500\t20600\nchrA\t20700\t20800\tref.HG1.1\n", "own.bed")
    assert regions_of(built[0], file, said) == {("ref", 20500, 20600), ("ref.HG1.1", 20700, 20800)}
    assert said == [f"data.regions.beds: 1 of 2 lines of {file} name no assembly, so they count {left_out}"]
    said.clear()
    file = bed(tmp_path, "chrA\t20700\t20800\tref.HG1.1\n", "named.bed")
    assert regions_of(built[0], file, said) == {("ref.HG1.1", 20700, 20800)} and not said


def test_regions_of_haplotypes_alone_must_name_them(genome: Genome, tmp_path: Path, local_ray: int) -> None:
    uri = str(tmp_path / "d")
    build(genome.config(uri, variants={"keep_reference": False}))
    file = bed(tmp_path, "chrA\t20500\t20600\n")
    with pytest.raises(ConfigError) as fault:
        regions_of(uri, file, [])
    assert str(fault.value) == (
        f"data.regions.beds: no line lies in the train split of {uri}: 1 of 1 lines of {file} give no "
        "window: 1 without an assembly, on contigs of haplotypes alone (chrA); a line in a haplotype's own "
        "coordinates may name it in the fourth column"
    )
    file = bed(tmp_path, "chrA\t20500\t20600\tref.HG1.2\n", "own.bed")
    assert regions_of(uri, file, []) == {("ref.HG1.2", 20500, 20600)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": ["a b"]}, r"'a b' must be letters, digits, .* rename the sample \(bcftools reheader\)"),
        ({"haplotypes": []}, r"must be \[1\], \[2\] or \[1, 2\]"),
        ({"haplotypes": [1, 1]}, r"must be \[1\], \[2\] or \[1, 2\]"),
        ({"samples": ["x", "x"]}, r"names must differ, given twice: r\.x\.1, r\.x\.2"),
    ],
)
def test_wrong_keys(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "c.yaml"
    variants = {"vcf": "x.vcf", "samples": ["s"]} | changes
    file.write_text(
        f"references: [{{name: r, uri: x.fa, variants: {{vcf: x.vcf, samples: {variants['samples']}, "
        f"haplotypes: {variants.get('haplotypes', [1, 2])}}}}}]\noutput: o\n"
    )
    with pytest.raises(ConfigError, match=message):
        load(DataConfig, str(file))


def test_a_vcf_that_changes_is_noticed(genome: Genome, tmp_path: Path) -> None:
    sizes = {name: len(letters) for name, letters in genome.letters.items()}
    vcf = write_vcf(tmp_path / "y.vcf", genome.variants, sizes, "HG1")
    made = partial(genome.planned, variants={"vcf": vcf, "haplotypes": [1]})
    first = made().manifest.sources[1]
    write_vcf(tmp_path / "y.vcf", genome.variants[:50], sizes, "HG1")
    assert made().manifest.sources[1].sha256 != first.sha256
    digest = hashlib.sha256(Path(genome.uri).read_bytes()).hexdigest()
    assert made().manifest.sources[0].sha256 == digest, "of the reference it stays"
