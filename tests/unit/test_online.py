"""Labelled tasks while a run trains: which rows, what is fitted to them, when, and what is logged."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs import ConfigError, load, validate
from tests.registered import tiny_network, write_task
from tests.unit.test_hooks import Stub, outcome, state
from trainer.core.collectives import Group
from trainer.evaluation.config import Validation
from trainer.evaluation.online import fitting, slices
from trainer.evaluation.online.fitting import floor_of, scores_of
from trainer.evaluation.online.messages import Scores, ToRead
from trainer.evaluation.online.rows import OnlineTask, read_tasks
from trainer.evaluation.online.slices import SharedTask, Slice
from trainer.evaluation.tasks import curve_names
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.modes import fit_mode
from trainer.evaluation.tasks.fitting.prepared import prepare
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures, features_of, probe_features
from trainer.evaluation.tasks.kinds.registry import KINDS
from trainer.evaluation.tasks.results import curves
from trainer.evaluation.tasks.results.results import Result, Unit
from trainer.evaluation.tasks.results.results_log import StoredResult
from trainer.evaluation.tasks.rows.data import Split, TaskData
from trainer.evaluation.tasks.rows.data import load as load_data
from trainer.inference.embedding import embed
from trainer.inference.sequences import EncodedSequences
from trainer.run import online_readings
from trainer.run.fit_process import FitError, FitProcess, Fitted
from trainer.run.online_readings import Due, Fits, ReadTasks, interval

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def motif(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("motif"))


@pytest.fixture(scope="module")
def task(motif: Path) -> OnlineTask:
    (found,) = read_tasks([str(motif)], most=120)
    return found


def test_the_section_takes_one_task_or_several_each_once() -> None:
    assert validate(Validation, {"tasks": "a.yaml"}, source="t").tasks == ("a.yaml",)
    assert validate(Validation, {}, source="t") == Validation(tasks=(), tasks_every=None, tasks_rows=1000)
    with pytest.raises(ConfigError, match=r"tasks: the same task is given twice"):
        validate(Validation, {"tasks": ["a.yaml", "a.yaml"]}, source="t")
    with pytest.raises(ConfigError, match="tasks_every: input should be greater than or equal to 1"):
        validate(Validation, {"tasks_every": 0}, source="t")


def test_rows_are_those_of_a_low_label_curve_and_test_stays_out(motif: Path, task: OnlineTask) -> None:
    config = load(TaskConfig, motif, ["max_train_rows=120"])
    whole = load_data(config)
    assert (task.name, len(task.train), len(task.dev)) == ("motif", 120, len(whole.dev))
    assert task.train.letters == whole.train.letters
    assert not set(whole.test.letters) & {*task.train.letters, *task.dev.letters}
    (few,) = read_tasks([str(motif)], most=15)
    assert (len(few.train), len(few.dev)) == (15, 15)
    assert set(few.dev.letters) < set(task.dev.letters)
    assert set(few.dev.truth_N) == {0, 1}


def test_the_tasks_own_limit_of_rows_holds(motif: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(motif.read_text() + "max_train_rows: [20, 40]\n")
    assert [len(read_tasks([str(own)], most=most)[0].train) for most in (30, 500)] == [30, 40]


@pytest.mark.parametrize(
    ("change", "rows", "message"),
    [
        (lambda text: text + "kin: x\n", 9, r"^val\.tasks: .*t\.yaml: 1 fault\n  kin: unknown key"),
        (lambda text: text.replace("train.csv", "no.csv"), 9, r"^val\.tasks: .*no\.csv"),
        (lambda text: text.replace("[a, b]", "[a, c]"), 9, r"^val\.tasks: .*label .b. is not among"),
        (lambda text: text, 1, r"^val\.tasks: task motif: its train split of 1 rows \(max_train_rows=1\)"),
    ],
)
def test_a_task_that_cannot_be_read_is_one_sentence(
    motif: Path, tmp_path: Path, change: Any, rows: int, message: str
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(change(motif.read_text()))
    with pytest.raises(ConfigError, match=message):
        read_tasks([str(path)], most=rows)


def test_tasks_that_are_missing_or_share_a_name_are_refused(motif: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^val\.tasks: config file nowhere\.yaml does not exist"):
        read_tasks(["nowhere.yaml"], most=9)
    again = tmp_path / "again.yaml"
    again.write_text(motif.read_text())
    with pytest.raises(ConfigError, match=rf"^val\.tasks: {motif} and {again} give the same name of task"):
        read_tasks([str(motif), str(again)], most=40)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
def test_ranks_share_the_same_batches_each_equally_many(ranks: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(300, 900, 100)
    sequences = EncodedSequences.from_codes([rng.integers(0, 4, n).astype(np.uint8) for n in lengths])
    parts = [Slice.of(sequences, Group(rank, ranks), device=CPU) for rank in range(ranks)]
    assert len({len(part.batches) for part in parts}) == 1
    assert all(torch.equal(part.order_N, parts[0].order_N) for part in parts)
    given = [
        batch.codes(n) for part in parts for batch in part.batches[: part.real] for n in range(len(batch))
    ]
    assert len(given) == 100
    for place, codes in zip(parts[0].order_N.tolist(), given, strict=True):
        assert np.array_equal(codes, sequences.codes(place))
    alone = {batch.codes_M.tobytes() for batch in Slice.of(sequences, Group(0, 1), device=CPU).batches}
    assert {batch.codes_M.tobytes() for part in parts for batch in part.batches} == alone


def test_embeddings_are_those_of_mode_probe_and_the_network_stays_as_it_was(task: OnlineTask) -> None:
    network, rows = tiny_network(), task.rows()
    sequences = rows.sequences
    network.train()
    shared = SharedTask(rows, Slice.of(sequences, Group(0, 1), device=CPU))
    found = slices.embed_together(network, shared, group=Group(0, 1))
    assert network.training
    wanted = features_of(task.config.probe.pooling, network.backbone, strand=task.config.strand)
    assert list(found) == list(wanted) and len(wanted) == 2
    alone = probe_features(network.eval(), sequences, wanted, strand=task.config.strand)
    for ours, theirs in zip(found.values(), alone, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-6)


def test_probe_and_floor_are_those_of_the_modes_on_the_same_rows(task: OnlineTask) -> None:
    network = tiny_network()
    nothing = Split("test", task.dev.letters[:4], task.dev.truth_N[:4])
    prepared = prepare(
        network, {}, task=task.config, data=TaskData(task.train, task.dev, nothing, {}), device=CPU
    )
    by_mode = {
        mode: task.kind.main_score(task.dev.truth_N, fit_mode(prepared, mode, seed=0).dev_prediction)
        for mode in ("kmer", "onehot", "probe")
    }
    by_split = [prepared.features.probe(split) for split in (task.train, task.dev)]
    embeddings = {read: np.concatenate([of[read] for of in by_split]) for read in by_split[0]}
    assert scores_of(task, embeddings, floor=0.125)._replace(knn=0) == Scores(by_mode["probe"], 0, 0.125)
    assert floor_of(task) == max(by_mode["kmer"], by_mode["onehot"]) > 0


LABELS: dict[str, tuple[str, ...]] = {
    "classification": ("a", "b", "c"),
    "regression": (),
    "multilabel": ("x", "y"),
}
TEXTS = {
    "classification": ["a", "b", "c", "a", "b"],
    "regression": ["0.5", "1.5", "-2", "4", "3"],
    "multilabel": ["x", "y", "x,y", "", "x"],
}


@pytest.mark.parametrize("kind_name", TEXTS)
def test_neighbours_are_the_mean_of_the_nearest_by_angle_in_every_kind(kind_name: str) -> None:
    rng = np.random.default_rng(3)
    texts = [TEXTS[kind_name][i % 5] for i in range(70)]
    kind = KINDS[kind_name](LABELS[kind_name])
    truth = kind.truth(texts)
    kind = kind.fit(truth[:50])
    split = [
        Split(role, tuple("ACGT" for _ in texts[part]), truth[part])
        for role, part in (("train", slice(0, 50)), ("dev", slice(50, 70)))
    ]
    labels = {"labels": list(LABELS[kind_name])} if LABELS[kind_name] else {}
    config = validate(TaskConfig, {"name": "t", "kind": kind_name, "train": "x", **labels}, source="t")
    features = rng.normal(size=(70, 6)) * [1, 2, 3, 4, 5, 100] + 7
    features[:, 1] += 10 * kind.sure(truth).reshape(70, -1)[:, 0]  # something to find
    found = scores_of(OnlineTask(config, kind, split[0], split[1]), {ProbeFeatures(): features}, floor=0)
    standard = (features - features[:50].mean(0)) / features[:50].std(0)
    unit = standard / np.linalg.norm(standard, axis=1, keepdims=True)
    said = []
    for row in unit[50:]:
        nearest = sorted(range(50), key=lambda i: -float(unit[i] @ row))[: fitting.NEIGHBOURS]
        said.append(np.mean([kind.sure(truth[:50])[i] for i in nearest], axis=0))
    assert found.knn == pytest.approx(kind.main_score(truth[50:], np.array(said)), abs=1e-9)
    assert found.probe > 0.1


@pytest.mark.parametrize(
    ("asked", "reading", "expected"),
    [(7, 1e9, 7), (None, 0.01, 10), (None, 4.0, 100), (None, 4.01, 110), (None, 400.0, 10_000)],
)
def test_the_interval_keeps_the_share_of_the_steps(asked: int | None, reading: float, expected: int) -> None:
    assert interval(asked, reading=reading, step=1.0) == expected


class Process:
    """Stands for the process that fits; ``faults``: what befalls its calls, "" for nothing."""

    def __init__(self, *faults: str) -> None:
        self._faults, self.closed, self.go_on = [*faults], False, threading.Event()

    def fit(self, embeddings: Any) -> Fitted:
        self.go_on.wait(20)
        if self._faults and (fault := self._faults.pop(0)):
            raise FitError(fault)
        return Fitted([Scores(float(embeddings[0]), 0.5, 0.25)], 1.5)

    def close(self) -> None:
        self.closed = True
        self.go_on.set()


def fits_of(
    task: OnlineTask, process: Process, **more: Any
) -> tuple[Fits, list[tuple[int, Mapping[str, float]]]]:
    logged: list[tuple[int, Mapping[str, float]]] = []
    fits = Fits(
        [task.rows()],
        process,  # type: ignore[arg-type]
        lambda metrics, step: logged.append((step, metrics)),
        **more,
    )
    return fits, logged


def test_a_fit_is_logged_at_the_step_of_its_reading_and_a_failed_one_is_said(
    task: OnlineTask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = Process("", "ValueError: Input contains NaN")
    fits, logged = fits_of(task, process)
    fits.begin(Due(3, [torch.tensor(0.75)], {"online/step_s": 0.1}))
    assert logged == [], "the fit is beside the steps"
    process.go_on.set()
    fits.wait()
    fits.begin(Due(6, [torch.tensor(0.8)], {}))
    fits.wait()
    fits.close()
    assert process.closed
    assert logged == [
        (
            3,
            {
                "online/step_s": 0.1,
                "online/fit_s": 1.5,
                "downstream/motif/online_probe_dev_mcc": 0.75,
                "downstream/motif/online_knn_dev_mcc": 0.5,
                "downstream/motif/floor_dev_mcc": 0.25,
                "downstream/motif/probe_mcc": 0.75,
                "downstream/motif/knn_mcc": 0.5,
            },
        )
    ]
    assert capsys.readouterr().err == (
        "step 3, probe, neighbours and floor on dev: motif MCC 0.750, 0.500, 0.250\n"
        "warning: the labelled tasks are not read at step 6: ValueError: Input contains NaN\n"
    )


def test_closing_ends_a_fit_that_is_under_way_and_says_nothing(
    task: OnlineTask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits, logged = fits_of(task, Process("killed"))
    fits.begin(Due(3, [torch.tensor(0.75)], {}))
    fits.close()
    assert logged == [] and capsys.readouterr().err == ""


def test_a_run_that_is_told_to_stop_waits_for_a_fit_only_so_long(
    task: OnlineTask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(online_readings, "_STOPPED_S", 0.2)
    process, stops = Process(), [False, False, True]
    fits, logged = fits_of(task, process, stopping=lambda: len(stops) < 2 or stops.pop(0))
    fits.begin(Due(3, [torch.tensor(0.75)], {}))
    fits.wait()
    fits.wait()
    fits.close()
    assert len(logged) <= 1, "the fit may end just then, and is not logged twice"
    assert capsys.readouterr().err.count("is left out, as the run is told to stop") == 1


def test_the_hook_reads_when_it_is_due_and_after_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_readings, "embed_together", lambda network, task, group: f"vectors {task}")
    fits, shared = Stub(), ["its rows"]
    hook = ReadTasks(shared, every=3, fits=fits, group=Group(0, 1))  # type: ignore[arg-type]
    paused = []
    for number in range(1, 8):
        step = outcome(is_last=number == 7)
        hook.after_step(state(number), step)
        if step.paused:
            paused.append(number)
    hook.at_end(state(7), 0)
    assert paused == [3, 6, 7]
    assert [name for name, *_ in fits.asked] == ["wait", "begin"] * 3 + ["wait"], "none is skipped"
    due = [each[1] for each in fits.asked if each[0] == "begin"]
    assert [(each.step, each.embeddings) for each in due] == [(n, ["vectors its rows"]) for n in (3, 6, 7)]
    assert all(each.metrics.keys() == {"online/step_s", "online/time_share"} for each in due)


def test_other_ranks_embed_alone_and_a_run_without_tasks_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded: list[Any] = []
    monkeypatch.setattr(online_readings, "embed_together", lambda network, task, group: embedded.append(task))
    second = ReadTasks(["its rows"], every=3, fits=None, group=Group(1, 2))  # type: ignore[list-item]
    second.after_step(state(3), outcome())
    assert embedded == ["its rows"]
    step = outcome(is_last=True)
    without = ReadTasks([], every=3, fits=None, group=Group(0, 1))
    without.run(state(0))
    without.after_step(state(3), step)
    without.at_end(state(3), 0)
    assert not step.paused and len(embedded) == 1


def test_the_process_fits_says_what_went_wrong_and_is_started_again_after_its_death(
    task: OnlineTask, tmp_path: Path
) -> None:
    path = write_task(tmp_path)  # the same rows
    vectors, read = torch.cat(embed(tiny_network(), task.rows().sequences), 1), ProbeFeatures()
    process = FitProcess(ToRead((str(path),), 120))
    try:
        (rows,) = process.read()
        assert (rows.sha256, rows.name, rows.metric) == (task.rows().sha256, "motif", "mcc")
        assert np.array_equal(rows.sequences.codes_M, task.rows().sequences.codes_M)
        found = process.fit([{read: vectors}])
        assert found.scores == [scores_of(task, {read: vectors.numpy()}, floor=floor_of(task))]
        with pytest.raises(FitError, match=r"^ValueError: Input .*contains NaN"):
            process.fit([{read: vectors * torch.nan}])
        kill(process)
        with pytest.raises(FitError, match=r"^the process that fits ended with code -9"):
            process.fit([{read: vectors}])
        assert process.fit([{read: vectors}]).scores == found.scores
        with (tmp_path / "dev.csv").open("a") as file:
            file.write("ACGTACGTAACC,a\n")
        kill(process)
        with pytest.raises(FitError, match=r"^the process that fits ended with code -9"):
            process.fit([{read: vectors}])
        with pytest.raises(FitError, match=r"^the files of the tasks have changed since the start$"):
            process.fit([{read: vectors}])
        path.write_text("name: motif")
        with pytest.raises(ConfigError, match=r"^val\.tasks: .*motif\.yaml"):
            process.read()
    finally:
        process.close()
    with pytest.raises(FitError):
        process.fit([{read: vectors}])


def kill(process: FitProcess) -> None:
    assert process._process
    process._process.kill()
    process._process.wait()


def test_names_of_curves_tell_dev_from_test() -> None:
    online = [f"downstream/t/{name}" for name in curve_names.online_scores("mcc", probe=1, knn=1, floor=1)]
    assert curve_names.downstream("a/b:c", "x") == "downstream/a_b_c/x"
    for name in online:
        assert curve_names.of_test(name.removeprefix("downstream/"), online) is None
    assert curve_names.of_test("t/probe_test_mcc", online) == ("t", "mcc")
    assert curve_names.of_test("t/probe_dev_mcc", online) is None
    assert curve_names.of_test("other/probe_mcc", online) == ("other", "mcc")
    assert [n for n in online if curve_names.of_online_probe(n.removeprefix("downstream/"))] == [
        "downstream/t/online_probe_dev_mcc"
    ]
    assert curve_names.read_online(curve_names.online_tag(["a, b", "c"])) == ["a, b", "c"]
    assert curve_names.online_tag([]) == {} and curve_names.read_online({}) == []


def test_the_test_score_of_a_version_has_another_name_where_the_run_reads_the_task_itself() -> None:
    task = validate(
        TaskConfig, {"name": "t", "labels": ["a", "b"], "train": "x", "modes": ["kmer", "probe"]}, source="t"
    )
    stored = [
        StoredResult(
            Result(Unit("m", "1", "t", mode, 0), {"mcc": 0.1}, {"mcc": 0.2}, settings="s"), "r", 5, "", ""
        )
        for mode in ("kmer", "probe")
    ]
    named = {
        online: {
            point.name.removeprefix("downstream/t/"): point.value
            for point in curves.points(stored, [curves.CurveTask(task, "s")], online=[online])
        }
        for online in ("t", "other")
    }
    assert named["other"] == {"kmer_mcc": 0.2, "kmer_dev_mcc": 0.1, "probe_mcc": 0.2, "probe_dev_mcc": 0.1}
    assert named["t"] == {"kmer_mcc": 0.2, "kmer_dev_mcc": 0.1, "probe_test_mcc": 0.2, "probe_dev_mcc": 0.1}
