"""Paths as users write them: ~, variables that nothing has replaced, and folders that are deleted later.

``ray job submit --working-dir .`` copies the working folder to a temporary one on each node that takes part,
and runs the job there. What a job writes to a relative path is deleted with that copy.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from configs import ConfigError, redact

_LOCAL = re.compile(r"(?:file|local)://|sqlite:///|file:")  # before a path, in URIs of fsspec and MLflow
_VARIABLE = re.compile(r"\$([A-Z_][A-Z0-9_]*|\{\w+\})")
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the command of a job
_COPIES = "working_dir_files"  # Ray's folder of copies, below its temporary one
_NO_PATH = {"", ":memory:", "databricks", "databricks-uc"}  # in MLflow's URIs


def expand(path: str, *, what: str = "") -> str:
    """``path`` with ~ or ~USER at its beginning replaced by the home folder. ``what``: the key or variable it
    is from.

    Raises:
        ConfigError: no user has that name; or it holds $NAME, which a shell would have replaced, and no such
            path is there.
    """
    named = f"{what}: {path}" if what else path
    expanded = os.path.expanduser(path)
    first = expanded.partition("/")[0]
    if first.startswith("~") and not os.path.lexists(first):
        why = (
            "this process has no home folder; set HOME"
            if first == "~"
            else "this machine has no user of that name"
        )
        raise ConfigError(f"{named} begins with {first}, and {why}")
    if (found := _VARIABLE.search(expanded)) and not os.path.lexists(expanded[: found.end()]):
        raise ConfigError(
            f"{named} holds {found[0]}, which only a shell replaces; write the path out, or "
            f"${{oc.env:{found[1].strip('{}')}}} in a config"
        )
    return expanded


def expand_uri(uri: str) -> str:
    """``uri``, also one of MLflow's, with its path expanded as by ``expand``; a remote one stays as it is."""
    path = _path(uri)
    return uri if "://" in path else uri.removesuffix(path) + expand(path)


def is_relative(uri: str) -> bool:
    """Whether ``uri`` is a local path that depends on the folder in which the process runs."""
    return "://" not in _path(uri) and _path(uri) not in _NO_PATH and not _path(uri).startswith(("/", "~"))


def temporary_folder() -> str:
    """Why files in the working folder will be lost: it is Ray's copy, or that of a job. Empty if they will
    not."""
    here = Path.cwd()
    if _COPIES in here.parts:
        return (
            f"the working folder is Ray's temporary copy of what git does not ignore ({here}), which "
            f"Ray deletes"
        )
    if os.environ.get(_JOB):
        return f"a Ray job runs in a folder of whichever node takes it ({here})"
    return ""


def refuse_lost(*, outputs: Mapping[str, str | None] = {}, inputs: Iterable[tuple[str, str]] = ()) -> None:
    """In a Ray job, refuse relative outputs (key -> URI), and relative inputs (key, URI) that are not there.

    Raises:
        ConfigError: each of them, with its key.
    """
    why = temporary_folder()
    if not why:
        return
    faults = [
        f"{key}: {redact(uri)} is relative, and {why}; give an absolute path that outlasts the job, or a URI "
        "such as s3://bucket/prefix"
        for key, uri in outputs.items()
        if uri and is_relative(uri)
    ]
    faults += [
        f"{key}: {redact(uri)} is relative and not there, and {why}; give an absolute path that every node "
        "reaches, or a URI"
        for key, uri in inputs
        if is_relative(uri) and not os.path.exists(_path(uri))
    ]
    if faults:
        raise ConfigError("\n  ".join(faults))


def _path(uri: str) -> str:
    local = _LOCAL.match(uri)
    return uri[local.end() :] if local else uri
