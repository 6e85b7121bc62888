"""cluster.process.paths and all commands that write: what would be lost with a Ray job's folder is
refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import data_prep.__main__ as data_prep
from cluster.launch.config import Launch
from cluster.process import exits, host, paths
from configs import ConfigError
from data_prep.config import DataConfig
from trainer import embed, finetune
from trainer import main as pretraining
from trainer.run import world_size
from trainer.run.config import TrainConfig
from trainer.tracking.config import default_tracking_uri

COPY = "working_dir_files/_ray_pkg_0123"
TRAIN = str(Path(__file__).parents[2] / "configs/train/demo.yaml")


@pytest.fixture(params=["copy", "job"])
def in_job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working folder as Ray gives one to a job that was submitted with and without --working-dir; why it is
    lost."""
    copy = request.param == "copy"
    folder = tmp_path / "session" / "runtime_resources" / COPY if copy else tmp_path / "app"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    if not copy:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    return (
        f"the working folder is Ray's temporary copy of what git does not ignore ({folder}), which Ray "
        f"deletes"
        if copy
        else f"a Ray job runs in a folder of whichever node takes it ({folder})"
    )


@pytest.mark.parametrize(
    ("uri", "relative"),
    [
        ("a/b", True),
        ("./a", True),
        ("../a", True),
        ("file://a/b", True),
        ("file:a", True),
        ("sqlite:///mlflow.db", True),
        ("./mlruns", True),
        ("/a", False),
        ("~/a", False),
        ("file:///a", False),
        ("sqlite:////a/mlflow.db", False),
        ("s3://b/a", False),
        ("https://host/x", False),
        ("sqlite://", False),
        ("sqlite:///:memory:", False),
        ("databricks", False),
        ("postgresql://u@h/d", False),
        ("zip://a::s3://b/x.zip", False),
    ],
)
def test_what_is_relative(uri: str, relative: bool) -> None:
    assert paths.is_relative(uri) == relative


def test_outside_a_job_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.refuse_lost(outputs={"output": "a"}, inputs=[("uri", "none")])


def test_every_fault_is_named_with_its_key(in_job: str) -> None:
    Path("there.fa").touch()
    with pytest.raises(ConfigError) as caught:
        paths.refuse_lost(
            outputs={"output": "a/b", "other": "s3://b/a", "third": None, "track.uri": "sqlite:///m.db"},
            inputs=[("uri", "there.fa"), ("uri", "file://gone.fa"), ("bed", "/gone"), ("bed", "x?.bed")],
        )
    assert str(caught.value).split("\n  ") == [
        f"{key}: {uri} is relative, and {in_job}; give an absolute path that outlasts the job, or a URI "
        f"such as "
        "s3://bucket/prefix"
        for key, uri in (("output", "a/b"), ("track.uri", "sqlite:///m.db"))
    ] + [
        f"{key}: {uri} is relative and not there, and {in_job}; give an absolute path that every node "
        f"reaches, or a URI"
        for key, uri in (("uri", "file://gone.fa"), ("bed", "x?.bed"))
    ]
    paths.refuse_lost(outputs={"output": f"{os.getcwd()}/a"}, inputs=[("uri", "there.fa")])


def refused(command: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that ends with exit code 2 and leaves nothing."""
    before = sorted(Path.cwd().rglob("*"))
    assert command() == exits.EXIT_USAGE
    assert sorted(Path.cwd().rglob("*")) == before
    return capsys.readouterr().err


def test_data_prep_in_a_job(in_job: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("g.fa").write_text(">a\nACGT\n")
    Path("c.yaml").write_text(
        "references:\n  - {name: g, uri: gone.fa, include: [g.fa, i.bed], exclude: /e.bed}\n"
        "output: out\nsplit: {val: {bed: v.bed}}\n"
    )
    words = refused(lambda: data_prep.main(["build", "--config", "c.yaml"]), capsys)
    assert [line.split()[0] for line in words.removeprefix("error: ").splitlines()] == [
        "output:",
        "split.val.bed:",
        "references.0.uri:",
        "references.0.include:",
    ]
    assert (
        words.count(in_job) == 4 and "out is relative" in words and "i.bed is relative and not there" in words
    )
    for command, key in (
        (["stats", "/d", "--picture", "p.png"], "--picture"),
        (["verify", "d"], "the dataset"),
        (["export", "/d", "--split", "val", "--fasta", "f"], "--fasta"),
        (["leakage", "d"], "the d"),
        (["synth", "--output", "s"], "--output"),
        (["stats", "d"], "the dataset"),
    ):
        words = refused(lambda command=command: data_prep.main(command), capsys)
        assert words.startswith(f"error: {key}") and in_job in words


def test_alternatives_of_a_reference_need_not_be_there() -> None:
    config = DataConfig.model_validate(
        {"references": [{"name": "g", "uri": ["a", "s3://b/a"]}], "output": "/o"}
    )
    assert config.inputs() == []


def test_training_in_a_job(
    in_job: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arguments = ["--config", TRAIN, "run.dir=runs/x", "data.uri=datasets/y"]
    for command in (
        lambda: pretraining.main(arguments),
        lambda: world_size.main(["--at-most", "2", *arguments]),
    ):
        words = refused(command, capsys)
        for key, uri in (
            ("run.dir", "runs/x"),
            ("track.uri", "sqlite:///mlflow.db"),
            ("data.uri", "datasets/y"),
            ("track.artifact_uri", "./mlruns"),
        ):
            assert f"{key}: {uri} is relative" in words
        assert words.count(in_job) == 4
    words = refused(
        lambda: world_size.main(
            [
                "--at-most",
                "2",
                "--config",
                TRAIN,
                "run.dir=/r",
                "data.uri=/d",
                "track.uri=sqlite:////db/mlflow.db",
            ]
        ),
        capsys,
    )
    assert words.startswith("error: track.artifact_uri: ./mlruns is relative"), (
        "there MLflow would put the model"
    )
    lasting = ["run.dir=s3://b/r", "data.uri=s3://b/d", "track.uri=http://host"]
    assert world_size.main(["--at-most", "2", "--config", TRAIN, *lasting]) == 0


def test_fine_tuning_and_embedding_in_a_job(
    in_job: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("t.yaml").write_text("name: t\ntrain: t.csv\nlabels: ['0', '1']\n")
    words = refused(
        lambda: finetune.main(["--model", "models:/m/1", "--task", "t.yaml", "--json", "o.json"]), capsys
    )
    for key in ("--json: o.json", "--track-uri: sqlite:///mlflow.db", "train: t.csv"):
        assert f"{key} is relative" in words
    words = refused(
        lambda: embed.main(["--model", "models:/m/1", "--input", "i.fa", "--output", "o.parquet"]), capsys
    )
    assert (
        "--output: o.parquet is relative, and" in words and "--input: i.fa is relative and not there" in words
    )


def test_the_cache_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, where in (
        ("~/dna", "home/dna"),
        ("c", "c"),
        ("c\r", "c"),
        ("", "home/.cache/dna-distill"),
        (" ", "home/.cache/dna-distill"),
    ):
        monkeypatch.setenv("DNA_CACHE", value)
        assert host.cache_root() == tmp_path / where
    for value, words in (
        ("$HOME/dna", r"DNA_CACHE: \$HOME/dna holds \$HOME"),
        ("~nobody-here", "DNA_CACHE: ~nobody"),
    ):
        monkeypatch.setenv("DNA_CACHE", value)
        with pytest.raises(ConfigError, match=words):
            host.cache_root()


def test_a_blank_server_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As env files and Compose write a variable that is not set, or end it with a return."""
    for value, uri in (
        ("", "sqlite:///mlflow.db"),
        (" ", "sqlite:///mlflow.db"),
        ("http://h:5000\r", "http://h:5000"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
        assert default_tracking_uri() == uri


def test_home_in_the_paths_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {
        "run": {"dir": "/r"},
        "data": {"uri": "/d", "cache_dir": "~/c", "length": 64},
        "train": {"steps": 1},
        "track": {"uri": "sqlite:///~/m.db", "artifact_uri": "~/a"},
    }
    config = TrainConfig.model_validate(values)
    assert config.data.cache_folder == tmp_path / "c" and config.track.uri == f"sqlite:///{tmp_path}/m.db"
    assert config.track.artifact_uri == f"{tmp_path}/a"
    assert Launch(kind="hostfile", hostfile="~/hosts").hostfile == f"{tmp_path}/hosts"
    for uri in ("s3://b/~/x", "http://u:$X@host/~", "databricks", "", "file:///a", "sqlite://"):
        assert paths.expand_uri(uri) == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/n.db")
    assert TrainConfig.model_validate(values | {"track": {}}).track.uri == f"sqlite:///{tmp_path}/n.db"
