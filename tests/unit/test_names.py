"""Names and URIs are refused where MLflow would refuse them, and nowhere else."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from trainer.tracking import names

NAMES = st.text(st.sampled_from("ab1._-/:@ '\"\n\\é"), max_size=6) | st.sampled_from(
    ["", " ", ".", "..", "...", "..a", "a/..", "yeast v1", "x" * 250, "models:/a", "a//b", "./a"]
)


def takes(check: Callable[[str], object], name: str) -> bool:
    try:
        check(name)
    except (ValueError, MlflowException):
        return False
    return True


@given(NAMES)
def test_names_are_taken_as_mlflow_takes_them(name: str) -> None:
    assert takes(names.model, name) == takes(validation._validate_model_name, name)
    assert takes(names.experiment, name) == takes(validation._validate_experiment_name, name)
    assert takes(names.run, name)


@pytest.mark.parametrize("check", [names.model, names.experiment, names.run])
def test_a_name_that_no_database_of_mlflow_holds_is_refused(check: Callable[[str], str]) -> None:
    assert check("é" * 250) == "é" * 250
    with pytest.raises(ValueError, match=r"has at most 2.. characters in MLflow's databases, not 257"):
        check("x" * 257)


@given(
    NAMES.filter(lambda name: takes(names.model, name)),
    st.sampled_from(["candidate", "a-1", "é"]),
    st.integers(1),
)
def test_a_reference_says_name_and_alias_or_version(name: str, alias: str, number: int) -> None:
    assert names.model_reference(f"models:/{name}@{alias}") == (name, alias, "")
    assert names.model_reference(f"models:/{name}/{number}") == (name, "", str(number))


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("nobody", ""),
        ("models:/nobody", ""),
        ("models:/m@", ""),
        ("models:/m/", ""),
        ("models:/m/two", ""),
        ("models:/m@a b", ""),
        ("runs:/1/model", ""),
        ("models:/@candidate", r" \(is no name that MLflow takes.*\)"),
        ("models:/a/b/3", r" \(MLflow takes no / or : in the name of a model\)"),
        ("models:/a:b@x", r" \(MLflow takes no / or : in the name of a model\)"),
    ],
)
def test_a_reference_to_no_model_says_how_one_is_written(uri: str, why: str) -> None:
    form = rf"{re.escape(uri)} is no registered model{why}; write models:/NAME@ALIAS or models:/NAME/VERSION"
    with pytest.raises(ValueError, match=f"^{form}$"):
        names.model_reference(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host",
        "https://me:word@host:443/mlflow",
        "http://[::1]:5000",
        "sqlite:///mlflow.db",
        "sqlite:////a/b.db",
        "sqlite+pysqlite:///x.db?timeout=1",
        "sqlite:///file:x.db?mode=ro&uri=true",
        "postgresql://h/db",
        "databricks",
        "postgresql+psycopg2://me:pa/ss@h:5432/db",
        "mysql+pymysql://h/db",
        "file:///runs",
        "mlruns",
        "databricks://profile",
    ],
)
def test_uris_of_mlflow_are_taken(uri: str) -> None:
    assert names.tracking(uri) == uri


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            "foo://x",
            "is no MLflow server or database; give http://, https://, sqlite://, postgresql://, mysql://, "
            "mssql://",
        ),
        ("", "is no MLflow server or database"),
        ("s3://bucket/x", "is no MLflow server or database"),
        ("http:///x", "names no host and port"),
        ("http://h:port", "names no host and port"),
        ("localhost:5000", "has no scheme; write http://localhost:5000"),
        ("h.x-y.org:80/p", "write http://h.x-y.org:80/p"),
        ("postgres://h/db", "write postgresql://"),
        ("sqlite://mlflow.db", "names no file"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:mlflow.db", "is no MLflow server"),
        ("/a/mlflow.db", "database; write sqlite:////a/mlflow.db"),
        (
            __file__,
            f"is the path of a file, where MLflow takes the URI of a database; write sqlite:///{__file__}",
        ),
    ],
)
def test_any_other_uri_is_refused_with_what_to_write(uri: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        names.tracking(uri)


def test_the_file_of_a_database() -> None:
    found = {
        "sqlite:///mlflow.db": "mlflow.db",
        "sqlite:////a/me@x/y%20z.db?timeout=3": "/a/me@x/y z.db",
        "sqlite+pysqlite:///file:/a/b.db?mode=ro&uri=true": "/a/b.db",
    }
    assert {uri: names.database_file(uri) for uri in found} == {
        uri: Path(path) for uri, path in found.items()
    }
    assert names.database_file("http://host:///x") is None
    assert names.database_file("postgresql:///db") is None
