"""The reference configs: every key, with its default and a comment."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

import configs
from cluster.launch.config import ClusterConfig
from configs import ConfigError, Section
from configs.values import parse
from data_prep.config import DataConfig
from trainer.evaluation.tasks.config import TaskConfig
from trainer.run.config import TrainConfig
from trainer.study.config import StudyConfig

FOLDER = Path(configs.__file__).parent
MODELS: dict[str, type[Section]] = {
    "train/reference.yaml": TrainConfig,
    "data/reference.yaml": DataConfig,
    "tasks/reference/task.yaml": TaskConfig,
    "cluster/reference.yaml": ClusterConfig,
    "studies/reference.yaml": StudyConfig,
}
_KEY = re.compile(r"( *)(- )?(\w+):(?: .*?)??(?: +# (.+))?")


def comments(text: str) -> dict[str, str]:
    """Dotted key -> its comment, at the end of its line or in the lines above it, else ""."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []  # (indentation, key) of the sections around a line
    above = ""
    for line in text.splitlines():
        if match := _KEY.fullmatch(line):
            spaces, dash, key, comment = match.groups()
            while path and path[-1][0] >= len(spaces):
                path.pop()
            if dash:
                path.append((len(spaces), "0"))
            path.append((len(spaces) + 2 * bool(dash), key))
            found[".".join(part for _, part in path)] = comment or above
        elif line.strip() and not line.strip().startswith("#"):
            raise AssertionError(f"no line of a reference config: {line!r}")
        said = line.strip().removeprefix("# ") if line.strip().startswith("#") else ""
        above = f"{above} {said}".strip() if said else ""
    return found


def keys(values: Any, prefix: str = "") -> set[str]:
    """Dotted keys of nested mappings, sections too; an entry of a list of mappings has its number as key."""
    found = set()
    if isinstance(values, list) and any(isinstance(item, dict) for item in values):
        values = dict(enumerate(values))
    elif not isinstance(values, dict):
        return found
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= keys(value, f"{name}.") | (set() if isinstance(key, int) else {name})
    return found


def only(values: Any, wanted: set[str], prefix: str = "") -> Any:
    """``values`` without the keys that are not ``wanted``, nor hold wanted ones."""
    if isinstance(values, list) and any(isinstance(item, dict) for item in values):
        return [only(item, wanted, f"{prefix}{number}.") for number, item in enumerate(values)]
    if not isinstance(values, dict):
        return values
    return {
        key: only(value, wanted, f"{prefix}{key}.")
        for key, value in values.items()
        if any(name == f"{prefix}{key}" or name.startswith(f"{prefix}{key}.") for name in wanted)
    }


def choices(section: BaseModel, prefix: str = "") -> dict[str, list[str]]:
    """Dotted key -> the values that it is one of, for each such key of a section and those within it."""
    found: dict[str, list[str]] = {}
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if options := literals(field.annotation):
            found[f"{prefix}{key}"] = options
        if isinstance(value, BaseModel):
            found |= choices(value, f"{prefix}{key}.")
    return found


def literals(annotation: Any) -> list[str]:
    """The values of the Literal types in ``annotation``."""
    parts = get_args(annotation)
    return list(parts) if get_origin(annotation) is Literal else [v for part in parts for v in literals(part)]


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return str(request.param)


def required(name: str) -> set[str]:
    texts = comments((FOLDER / name).read_text())
    return {key for key, comment in texts.items() if comment.startswith("REQUIRED")}


def test_every_key_is_there_with_its_default(name: str) -> None:
    model, text = MODELS[name], (FOLDER / name).read_text()
    minimal = configs.validate(model, only(parse(text), required(name)), source="minimal")
    assert keys(minimal.model_dump(mode="json")) == comments(text).keys()
    assert configs.load(model, FOLDER / name) == minimal


def test_what_is_marked_required_is(name: str) -> None:
    values = parse((FOLDER / name).read_text())
    for key in required(name):
        kept = {other for other in keys(values) if other != key and not other.startswith(f"{key}.")}
        leaves = {k for k in kept if not any(other.startswith(f"{k}.") for other in keys(values))}
        section, _, last = key.rpartition(".")
        told = f"{last}|{section}: missing" if section else last  # a section of which nothing is left
        with pytest.raises(ConfigError, match=told):
            configs.validate(MODELS[name], only(values, leaves), source=name)


def test_every_key_has_a_comment_that_names_its_choices(name: str) -> None:
    texts = comments((FOLDER / name).read_text())
    assert [key for key, comment in texts.items() if len(comment) < 4] == []
    silent = [
        f"{key}: {choice}"
        for key, options in choices(configs.load(MODELS[name], FOLDER / name)).items()
        for choice in options
        if f"`{choice}`" not in texts[key] and not texts[key].startswith("As ")
    ]
    assert silent == []


def test_comments_are_found() -> None:
    text = 'a:  # of a\n  - b: "x y"  # of b\n    # of c,\n    # too\n    c: 1\nd: 2\ne: {}  # of e\n'
    found = {"a": "of a", "a.0.b": "of b", "a.0.c": "of c, too", "d": "", "e": "of e"}
    assert comments(text) == found
    assert keys(parse(text)) == found.keys()


def test_choices_are_found() -> None:
    found = choices(configs.load(TrainConfig, FOLDER / "train" / "reference.yaml"))
    assert found["train.precision"] == ["fp32", "bf16"]
    assert found["loss.distill.balance"] == ["centring", "sinkhorn", "none"]
