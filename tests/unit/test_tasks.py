"""trainer.evaluation.tasks: configs and files of labelled tasks, and splits that share nothing."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import store
from configs import ConfigError, load, validate
from data_prep import alphabet
from tests.registered import write_task
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.rows.data import load as load_data

CONFIGS = Path(__file__).parents[2] / "configs" / "tasks"


def random_letters(count: int, *, seed: int = 0, length: int = 12) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join("ACGT"[i] for i in row) for row in rng.integers(0, 4, (count, length))]


def write_csv(path: Path, letters: list[str], labels: list[str] | None = None) -> str:
    labels = labels or ["ab"[i % 2] for i in range(len(letters))]
    path.write_text("sequence,label\n" + "".join(f"{s},{y}\n" for s, y in zip(letters, labels, strict=True)))
    return str(path)


def task(**values: object) -> TaskConfig:
    return validate(TaskConfig, {"name": "t", "labels": ["a", "b"]} | values, source="test")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_task_loads_and_takes_overrides(file: Path) -> None:
    config = load(
        TaskConfig, file, ["finetune.lr=1e-3", "modes=probe", "seeds=4", "max_train_rows=9", "kmer.C=[1,2]"]
    )
    assert config.name == file.stem
    assert (config.finetune.lr, config.modes, config.seeds) == ((1e-3,), ("probe",), (4,))


def test_shipped_tasks_hold_the_rows_they_say(dna_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_DATA", str(dna_data))
    data = load_data(load(TaskConfig, CONFIGS / "cohn.yaml"))
    assert len(data.train) + len(data.dev) + len(data.test) + sum(data.dropped.values()) == 6948
    assert 0.08 < len(data.test) / 6948 < 0.12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": ["a"], "test": "x"}, "at least 2 are needed"),
        ({"labels": ["a", "a"], "test": "x"}, "none twice"),
        ({}, "at least one of them must name a file"),
        ({"test": "x", "kind": "rank"}, "must be one of classification, multilabel, regression"),
        ({"test": "x", "kind": "regression"}, "labels: a regression has none, not"),
        (
            {"test": "x", "kind": "multilabel", "labels": ["a;b"]},
            "none may hold a comma, a semicolon or a bar",
        ),
        ({"test": "x", "kind": "multilabel", "labels": None}, "labels"),
        ({"test": "x", "max_train_rows": 0}, "must be a number of rows, at least 1, .* \\(given 0\\)"),
        ({"test": "x", "max_train_rows": [5, 5]}, "none twice"),
        ({"test": "x", "max_train_rows": []}, "or a list of those"),
        (
            {"test": "x", "label_column": ["a", "b"]},
            r"kind classification reads one column, not \['a', 'b'\]",
        ),
        ({"test": "x", "finetune": {"patience": -1}}, "greater than or equal to 0"),
        ({"test": "x", "finetune": {"lr": []}}, "at least 1 item"),
        ({"test": "x", "modes": ["kmers"]}, "'kmer'"),
        ({"test": "x", "max_train_row": 5}, "did you mean 'max_train_rows'"),
        ({"test": "x", "labels": [False, True]}, r'text in quotes, .* such as "true", not \[False, True\]'),
        ({"test": "x", "labels": [None, "a"]}, r"text in quotes, .* not \[None\]"),
        ({"test": "x", "labels": ["a", " "]}, "one of them is empty"),
    ],
)
def test_config_faults(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**values)


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("[no, yes]", ("no", "yes")),
        ("[1.0, 0]", ("1.0", "0")),
        ("[01, 1]", ("01", "1")),
        ('["null", a]', ("null", "a")),
        ("[on, 1_000]", ("on", "1_000")),
        ('["0", a b]', ("0", "a b")),
        ("[0x1F, 12:30]", ("0x1F", "12:30")),
    ],
)
def test_labels_are_the_words_of_the_file(tmp_path: Path, written: str, labels: tuple[str, ...]) -> None:
    (tmp_path / "t.yaml").write_text(f"name: 7\nlabels: {written}\ntest: x\nlabel_column: on\n")
    config = load(TaskConfig, tmp_path / "t.yaml")
    assert (config.labels, config.name, config.label_column) == (labels, "7", "on")
    (tmp_path / "t.yaml").write_text("name: t\nlabels: [a, b]\ntest: x\n")
    assert load(TaskConfig, tmp_path / "t.yaml", [f"labels={written}"]).labels == labels
    rows = "".join(
        f"{s},{label}\n" for label in labels for s in random_letters(60, seed=len(label) + ord(label[0]))
    )
    (tmp_path / "t.csv").write_text(f"sequence,label\n{rows}")
    data = load_data(
        load(TaskConfig, tmp_path / "t.yaml", [f"labels={written}", f"test={tmp_path / 't.csv'}"])
    )
    assert len(data.train) + len(data.dev) + len(data.test) == 120


def test_one_file_is_split_by_hash_the_same_in_any_order(tmp_path: Path) -> None:
    letters = random_letters(1000)
    first = load_data(
        task(test=write_csv(tmp_path / "a.csv", letters, ["ab"[len(s) % 2 or s < "G"] for s in letters]))
    )
    shuffled = sorted(letters)
    second = load_data(task(test=write_csv(tmp_path / "b.csv", shuffled, ["ab"[s < "G"] for s in shuffled])))
    for role in ("train", "dev", "test"):
        ours, theirs = getattr(first, role), getattr(second, role)
        assert set(ours.letters) == set(theirs.letters)
    assert not set(first.train.letters) & (set(first.dev.letters) | set(first.test.letters))
    assert [len(first.train), len(first.dev), len(first.test)] == pytest.approx([800, 100, 100], abs=35)
    # u of sha256("0:GATTACA") is 0.5286, so it is for training on every machine, for ever.
    assert (
        "GATTACA" in load_data(task(test=write_csv(tmp_path / "c.csv", [*letters, "gattaca"]))).train.letters
    )


def test_two_files_leave_the_given_test_whole_and_three_are_taken_as_they_are(tmp_path: Path) -> None:
    a, b, c = (write_csv(tmp_path / f"{i}.csv", random_letters(200, seed=i)) for i in range(3))
    split = load_data(task(dev=a, test=b))
    assert len(split.test) == 200
    assert len(split.train) + len(split.dev) == 200
    assert len(split.dev) == pytest.approx(20, abs=14)
    assert load_data(task(train=a, test=b)).dev.letters == split.dev.letters
    whole = load_data(task(train=a, dev=b, test=c))
    assert [len(whole.train), len(whole.dev), len(whole.test)] == [200, 200, 200]


def test_leaks_are_dropped_on_either_strand_and_counted(tmp_path: Path) -> None:
    train, dev, test = (random_letters(40, seed=i) for i in range(3))
    other = alphabet.decode(alphabet.reverse_complement(alphabet.encode(test[0].encode())[0])).decode()
    uris = {
        "train": write_csv(tmp_path / "1", [*train, test[3].lower(), other, dev[5]]),
        "dev": write_csv(tmp_path / "2", [*dev, test[3]]),
        "test": write_csv(tmp_path / "3", test),
    }
    data = load_data(task(**uris))
    assert data.dropped == {"train": 3, "dev": 1}
    assert data.train.letters == tuple(train)
    assert len(data.test) == 40


def test_subsample_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    letters = random_letters(300)
    labels = ["ab"[s < "G"] for s in letters]
    held = {
        "dev": write_csv(tmp_path / "d", random_letters(20, seed=3)),
        "test": write_csv(tmp_path / "t", random_letters(20, seed=4)),
    }
    one = load_data(task(train=write_csv(tmp_path / "1", letters, labels), max_train_rows=50, **held))
    two = load_data(
        task(train=write_csv(tmp_path / "2", letters[::-1], labels[::-1]), max_train_rows=50, **held)
    )
    assert len(one.train) == 50
    assert set(one.train.letters) == set(two.train.letters)
    assert one.sha256() != two.sha256()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seq,label\nACGT,a\n",
            r"no column 'sequence', its columns are 'seq', 'label'; give the right name as sequence_column",
        ),
        (
            "sequence,label\nACGT,a\nACGA,c\n",
            r"bad.csv, line 3: label 'c' is not among the task's labels \['a', 'b'\]; add it to labels, or",
        ),
        (
            "sequence,label\nACGT,a\nAC!T,b\n",
            r"bad.csv, line 3: byte b'!' at position 2 is no nucleotide letter",
        ),
        ("sequence,label\n,a\n", r"bad.csv, line 2: the sequence is empty"),
        ("sequence,label\n", r"bad.csv has a header and no rows"),
        ("", r"bad.csv is empty"),
        ("sequence,label\nACGT,a\nACGA,a\n", r"its test split of 2 rows has none with label 'b'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    good = {
        role: write_csv(tmp_path / role, random_letters(20, seed=i))
        for i, role in enumerate(("train", "dev"))
    }
    with pytest.raises(ValueError, match=message):
        load_data(task(test=str(tmp_path / "bad.csv"), **good))


def test_what_may_not_be_meant_is_told(tmp_path: Path) -> None:
    first, second, third = (random_letters(60, seed=i) for i in range(3))
    other = alphabet.decode(alphabet.reverse_complement(alphabet.encode(second[0].encode())[0])).decode()
    labels = [*(["a", "b"] * 30), "b", "b"]
    uris = {
        "train": write_csv(tmp_path / "1.csv", [*first, first[4], other], labels),
        "dev": write_csv(tmp_path / "2.csv", second),
        "test": write_csv(tmp_path / "3.csv", third),
    }
    assert load_data(task(**uris)).remarks == (
        "2 sequences (or the reverse complement) with more than one label; the first: "
        f"{tmp_path}/1.csv, line 6 has it with label 'a', {tmp_path}/1.csv, line 62 with 'b'",
    )
    (tmp_path / "3.csv").write_text((tmp_path / "3.csv").read_text() + "ACGTR,a")
    remarks = load_data(task(**uris)).remarks
    assert (
        remarks[0] == f"{tmp_path}/3.csv: its last line has no end; if the file was cut short, get it again"
    )
    assert remarks[1] == f"{tmp_path}/3.csv: 1 ambiguous letters (IUPAC codes such as R or Y) are read as N"
    with pytest.raises(
        ValueError, match=r"train split of 0 rows \(60 rows were left out, as dev or test holds"
    ):
        load_data(task(train=uris["dev"], dev=uris["test"], test=uris["dev"]))


def test_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match=r"nowhere.csv: no such file"):
        load_data(task(test=str(tmp_path / "nowhere.csv")))


def test_the_toy_task_is_whole(tmp_path: Path) -> None:
    data = load_data(load(TaskConfig, write_task(tmp_path)))
    assert (len(data.train), len(data.dev), len(data.test)) == (200, 60, 50)


def test_class_weights_need_classes() -> None:
    values = {"name": "t", "kind": "regression", "test": "x", "class_weights": "balanced"}
    with pytest.raises(ConfigError, match="class_weights: kind regression has no classes to weigh"):
        validate(TaskConfig, values, source="test")


def test_a_task_has_a_variant_for_each_number_of_rows() -> None:
    rows = [None, 500, 100]
    assert [each.max_train_rows for each in task(test="x", max_train_rows=rows).variants()] == [
        100,
        500,
        None,
    ]
    one = task(test="x", max_train_rows=7)
    assert one.variants() == (one,)
    assert task(test="x").variants() == (task(test="x"),)


def test_subsets_are_nested_and_have_every_class(tmp_path: Path) -> None:
    letters = random_letters(600, length=30)
    labels = ["c" if i in (7, 301) else "ab"[i % 2] for i in range(600)]
    whole = write_csv(tmp_path / "train.csv", letters, labels)
    other = write_csv(tmp_path / "other.csv", random_letters(30, seed=1, length=30), list("abc") * 10)
    held = write_csv(tmp_path / "held.csv", random_letters(30, seed=2, length=30), list("abc") * 10)
    config = task(train=whole, dev=other, test=held, labels=["a", "b", "c"], max_train_rows=[400, 3, 40, 599])
    before: set[str] = set()
    for variant in config.variants():
        train = load_data(variant).train
        assert len(train) == variant.max_train_rows
        assert set(train.truth_N) == {0, 1, 2}
        assert before < set(train.letters)
        assert list(train.letters) == [each for each in letters if each in set(train.letters)]
        before = set(train.letters)
    with pytest.raises(
        ValueError, match=r"its train split of 2 rows \(max_train_rows=2\) has none with label"
    ):
        load_data(config.model_copy(update={"max_train_rows": 2}))


def test_a_subset_that_has_every_class_is_chosen_by_hash_alone(tmp_path: Path) -> None:
    """As it was chosen before there were groups, so that earlier results stand."""
    letters = random_letters(200, length=30)
    uris = {
        role: write_csv(tmp_path / role, random_letters(30, seed=i, length=30))
        for i, role in enumerate(("dev", "test"), 1)
    }
    config = task(train=write_csv(tmp_path / "train", letters), **uris, max_train_rows=50)
    hashes = {each: hashlib.sha256(f"1:{each}".encode()).digest()[:8] for each in letters}
    assert set(load_data(config).train.letters) == set(sorted(letters, key=hashes.__getitem__)[:50])


def test_several_columns_of_0_and_1_are_labels(tmp_path: Path) -> None:
    letters, path = random_letters(400, length=30), tmp_path / "t.csv"
    rows = "".join(f"{each},{i % 2},{i // 2 % 2}\n" for i, each in enumerate(letters))
    path.write_text(f"sequence,left,right\n{rows}")
    values = {"name": "t", "kind": "multilabel", "label_column": ["left", "right"], "test": str(path)}
    data = load_data(validate(TaskConfig, values, source="test"))
    truth = {each: [i % 2, i // 2 % 2] for i, each in enumerate(letters)}
    for split in data.splits:
        assert split.truth_N.tolist() == [truth[each] for each in split.letters]
