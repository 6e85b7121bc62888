"""The names and URIs that MLflow accepts, checked without MLflow: a wrong one is refused before any work.

A check returns its argument, or raises ValueError with a sentence that says what is accepted. The rules for
characters are MLflow's own (compared with 3.17), the lengths those of the columns of its databases.
"""

import posixpath
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import unquote, urlsplit

from configs import redact

_MODEL, _EXPERIMENT, _RUN = 256, 256, 250  # characters
_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_OTHERS = ("file", "databricks", "databricks-uc", "uc")
_ALIAS = re.compile(r"[\w-]+")


def model(name: str) -> str:
    """A registered model's name."""
    if "/" in name or ":" in name:
        raise ValueError("MLflow takes no / or : in the name of a model")
    if not name.strip() or posixpath.normpath(name) != name or name == "." or name.startswith(".."):
        raise ValueError("is no name that MLflow takes for a model: not blank, not a dot, and not from .. on")
    return _short(name, _MODEL, "a model")


def experiment(name: str) -> str:
    """An experiment's name."""
    if not name:
        raise ValueError("an experiment needs a name")
    return _short(name, _EXPERIMENT, "an experiment")


def run(name: str) -> str:
    """A run's name."""
    return _short(name, _RUN, "a run")


def model_reference(uri: str) -> tuple[str, str, str]:
    """(name, alias or "", version or "") of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``."""
    reference = uri.removeprefix("models:/")
    name, slash, number = reference.rpartition("/")
    alias = ""
    if not slash:
        name, slash, alias = reference.rpartition("@")
        number = ""
    why = ""
    try:
        if reference != uri and slash and (number.isdecimal() or _ALIAS.fullmatch(alias)):
            return model(name), alias, number
    except ValueError as fault:
        why = f" ({fault})"
    raise ValueError(f"{uri} is no registered model{why}; write models:/NAME@ALIAS or models:/NAME/VERSION")


def tracking(uri: str) -> str:
    """The URI of an MLflow server or database."""
    head = uri.partition("://")[0]
    scheme = urlsplit(uri).scheme
    accepted = (
        f"give {', '.join(f'{name}://' for name in (*_SERVERS, *_DATABASES))}, such as sqlite:///mlflow.db"
    )
    if scheme in _SERVERS:
        try:
            found = urlsplit(uri)
            if found.hostname and (found.port is None or found.port):
                return uri
        except ValueError:
            pass
        raise ValueError("names no host and port of an MLflow server; write http://HOST:PORT")
    if (kind := head.partition("+")[0]) in _DATABASES and "://" in uri:
        if kind == "sqlite" and not re.match(r"[\w+]+:///(?!(:memory:)?(\?|$))", uri):
            raise ValueError(
                "names no file that a run could be kept in; write sqlite:///FILE, with a fourth / where "
                "FILE is absolute"
            )
        return uri
    if uri and not scheme and (Path(uri).is_file() or uri.endswith((".db", ".sqlite", ".sqlite3"))):
        raise ValueError(
            f"is the path of a file, where MLflow takes the URI of a database; write sqlite:///{uri}"
        )
    plugins = {point.name for point in entry_points(group="mlflow.tracking_store")}
    if uri and (scheme in ("", *_OTHERS) or scheme in plugins):
        return uri
    if scheme == "postgres":
        raise ValueError("SQLAlchemy knows no postgres://; write postgresql://")
    if re.match(r"[\w.-]+:\d+(/|$)", uri):
        raise ValueError(f"has no scheme; write http://{redact(uri)}")
    raise ValueError(f"is no MLflow server or database; {accepted}")


def database_file(uri: str) -> Path | None:
    """The file of an SQLite database; None for anything else."""
    head, mark, rest = uri.partition(":///")
    if not mark or head.partition("+")[0] != "sqlite":
        return None
    return Path(unquote(rest.partition("?")[0]).removeprefix("file:"))


def _short(name: str, most: int, what: str) -> str:
    if len(name) > most:
        raise ValueError(
            f"the name of {what} has at most {most} characters in MLflow's databases, not {len(name)}"
        )
    return name
