"""Typed configuration: YAML file + ``dotted.key=value`` overrides -> validated pydantic model."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from configs.registry import fields_of
from configs.section import Section as Section
from configs.values import argument, decode, parse

_PYDANTIC_MAPPING = re.compile(r"a valid dictionary or (object to extract fields from|instance of \w+)")
# SQLAlchemy takes any character but @ in a database's password; elsewhere a / ends what may be one.
_DATABASE_USERINFO = re.compile(
    r"\b((?:postgresql|mysql|mssql|mariadb|oracle)(?:\+\w+)?://)[^:/\s@]*:[^@\s]*@"
)
_USERINFO = re.compile(r"(?<!\babfs)(?<!\babfss)://[^/\s?]*@")  # abfs://CONTAINER@ACCOUNT
_QUERY = re.compile(r"(://[^\s?]*)\?[^\s'\"]*")  # of a presigned URL: a signature, a token


class ConfigError(ValueError):
    """The command line or the config is wrong; the message lists every fault. Commands exit 2 on it."""


M = TypeVar("M", bound=Section)


def load(model: type[M], path: str | Path, overrides: Sequence[str] = ()) -> M:
    """The config at ``path`` as a ``model``, after ``dotted.key=value`` overrides and
    ``${oc.env:NAME,default}``.

    Raises:
        ConfigError: naming every fault at once: its key, the value given, and what is accepted.
    """
    return validate(model, read(path, overrides), source=str(path))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[Any, Any]:
    """The values at ``path`` after the overrides, as ``load`` validates them. ConfigError: they cannot be
    read."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist (looked in {Path.cwd()})")
    bad = [
        item
        for item in overrides
        if not item.partition("=")[0].strip() or "=" not in item or item.startswith("-")
    ]
    if bad:
        raise ConfigError(f"not an override of the form dotted.key=value: {', '.join(bad)}")
    try:
        values = parse(decode(path.read_bytes()))
        values = {} if values is None else values
        if isinstance(values, dict):  # anything else is refused below
            tree = _tree(values)
            for item in overrides:
                _override(tree, item)
            values = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, ValueError, TypeError, OSError) as fault:
        raise ConfigError(f"{path}: {_one_line(fault)}") from fault
    if not isinstance(values, dict):
        kind = "a number" if isinstance(values, int | float) else type(values).__name__
        raise ConfigError(f"{path}: a mapping of keys is needed, not {kind}")
    return values


def _tree(values: Any) -> Any:
    return OmegaConf.create(values, flags={"allow_objects": True})  # numbers that know how they were written


def _override(tree: DictConfig, item: str) -> None:
    """Key by key, since a merge cannot reach into a list (references.0.uri=...)."""
    key, _, word = item.partition("=")
    try:
        new = argument(word)
    except ValueError as fault:
        raise ValueError(f"{item}: {fault}") from fault
    old = OmegaConf.select(tree, key, throw_on_resolution_failure=False)
    # A mapping is merged into a mapping; it takes the place of anything else, as {} does of a mapping, too.
    merge = not isinstance(new, dict) or (isinstance(old, DictConfig) and bool(new))
    OmegaConf.update(tree, key, _tree(new) if isinstance(new, dict | list) else new, merge=merge)


def validate(model: type[M], values: dict[Any, Any], *, source: str) -> M:
    """``values`` as a ``model``; ConfigError (prefixed with ``source``) lists every fault."""
    try:
        return model.model_validate(values)
    except ValidationError as fault:
        lines = [line for error in fault.errors() for line in _describe(model, error)]
        raise ConfigError(
            f"{source}: {len(lines)} fault{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines)
        ) from fault


def dump(config: Section) -> dict[str, Any]:
    """The resolved config as plain values, safe to save and log: what may be secret in URIs is replaced."""
    return redact(config.model_dump(mode="json"))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def redact(value: Any) -> Any:
    """``value`` with user:password@ of any URI in it, at any depth, replaced by ***@, and its query by three
    dots."""
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    if not isinstance(value, str):
        return value
    # The query before what stands before a host: it may hold an @.
    return _USERINFO.sub("://***@", _QUERY.sub(r"\1?...", _DATABASE_USERINFO.sub(r"\1***@", value)))


def _one_line(fault: Exception) -> str:
    if isinstance(fault, OmegaConfBaseException):  # further lines are for its developers
        return f"{fault.full_key}: {fault.msg or fault}".splitlines()[0]
    return " ".join(str(fault).split())


def _describe(model: type[BaseModel], error: Any) -> list[str]:
    """A line for each fault: a validator of ours may name several, a line each."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        last, fields = str(error["loc"][-1]), _fields_at(model, error["loc"][:-1])
        if last in fields:  # of another model than the one that was chosen
            return [f"{key}: unknown key for this {key.rpartition('.')[0]}.name"]
        near = difflib.get_close_matches(last, fields, n=1)
        return [f"{key}: unknown key" + (f", did you mean {near[0]!r}?" if near else "")]
    if error["type"] == "missing":
        return [f"{key}: missing"]
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "input should", 1)
    if error["type"] == "string_type" and (error["input"] is None or isinstance(error["input"], bool)):
        message += ", in quotes if that is the text"
    message = _PYDANTIC_MAPPING.sub("a mapping", message).replace("a valid tuple", "a list")
    # A fault of a whole section would print the section: its message names the values already.
    shown = "" if isinstance(error["input"], dict | BaseModel) else f" (given {redact(error['input'])!r})"
    return [f"{key + ': ' if key else ''}{line}{shown}" for line in message.split("\n")]


def _fields_at(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    """The names of the fields of the section at ``loc``."""
    fields: dict[str, Any] = dict(model.model_fields)
    for part in loc:
        if part in fields:  # else a list index or the tag of a union
            fields = fields_of(fields[str(part)])
    return list(fields)
