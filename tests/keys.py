"""docs/keys.md: every key of every config, from the config models and the comments of the reference configs.

``python -m tests.keys`` prints the page, ``python -m tests.keys --write`` writes it.
``tests/unit/test_keys.py`` compares the two.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

import configs
from configs import Section
from configs.values import parse
from tests.unit.test_reference_configs import FOLDER, MODELS, comments

PAGE = Path(__file__).resolve().parents[1] / "docs" / "keys.md"
WRITE = "python -m tests.keys --write"
TITLES = {  # reference config -> heading, and the command that reads such a config
    "train/reference.yaml": ("Pretraining", "trainer/main.py --config FILE"),
    "data/reference.yaml": ("Datasets", "python -m data_prep build --config FILE"),
    "tasks/reference/task.yaml": ("Labelled tasks", "python -m trainer.finetune --task FILE"),
    "cluster/reference.yaml": ("Supervisor", "python -m cluster train --config FILE"),
    "studies/reference.yaml": ("Studies", "python -m cluster study --config FILE"),
}
REQUIRED = "REQUIRED"
HEAD = f"""# Every key

Made by `{WRITE}` from the config models and the comments in the reference configs. Do not edit
it by hand.

A key is given in a YAML file, or on the command line as `dotted.key=value`. Unknown keys are refused. `null`
means that no value is given. `[]` in a key stands for each entry of a list. The keys of another backbone, and
what each value costs or brings, are in [training.md](training.md) and [choosing.md](choosing.md).
"""
WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    NoneType: "null",
    Any: "any",
}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    return "\n".join([HEAD, *(line for name in MODELS for line in _config(name))])


def _config(name: str) -> Iterator[str]:
    """The lines about one kind of config: keys that stand alone first, then each section."""
    title, command = TITLES[name]
    text = (FOLDER / name).read_text()
    told, values = comments(text), parse(text)
    kinds = dict(_fields(configs.load(MODELS[name], FOLDER / name)))
    holding = {key.rpartition(".")[0].removesuffix(".0") for key in told}
    tables: dict[str, list[str]] = {"": []}
    for key, comment in told.items():
        top = key.split(".")[0]
        heading = top if top in holding else ""
        row = _row(key, comment, _at(values, key), "section" if key in holding else kinds.get(key, "mapping"))
        tables.setdefault(heading, [comment] if heading else []).append(row)
    yield f"## {title}\n\n`{command}`; as a file with comments: `configs/{name}`."
    for heading, rows in tables.items():
        if heading:
            yield f"\n### {title}: {heading}\n\n{_sentence(rows.pop(0))}"
            rows.pop(0)  # the section's own
        if rows:
            yield "\n| key | value | default | what it does |\n|---|---|---|---|"
        yield from rows
    yield ""


def _row(key: str, comment: str, value: Any, kind: str) -> str:
    text, default = comment, f"`{_shown(value)}`" if kind != "section" else ""
    if comment.startswith(REQUIRED):
        condition, text = comment.removeprefix(REQUIRED).split(". ", 1)  # the condition is mostly empty
        default = f"*required*{condition}"
    # One value that stands for a list of one.
    if kind.startswith("list") and not isinstance(value, list) and _kind_of(value) not in kind:
        kind = f"{_kind_of(value)} or {kind}"
    cells = [f"`{key.replace('.0.', '[].')}`", kind, default, text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _sentence(comment: str) -> str:
    """The comment of a section as a sentence."""
    text = comment.removeprefix(REQUIRED).lstrip(". ").rstrip(".")
    return f"{text[0].upper()}{text[1:]}{' (required)' if comment.startswith(REQUIRED) else ''}."


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[int(part) if isinstance(values, list) else part]
    return values


def _fields(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key -> what values it takes, of ``section`` and the sections within it."""
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        yield f"{prefix}{key}", kind(field.annotation, field.metadata)
        if isinstance(value, tuple) and value and isinstance(value[0], Section):
            value, key = value[0], f"{key}.0"
        if isinstance(value, Section):
            yield from _fields(value, f"{prefix}{key}.")


def kind(annotation: Any, metadata: Any = ()) -> str:
    """What values a field of this type takes, in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(parts[0], [*parts[1:], *metadata])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(
            dict.fromkeys(kind(part, metadata if part is not NoneType else ()) for part in parts)
        )
    if origin is tuple:
        inner = kind(parts[0])
        inner = f"({inner})" if " or " in inner else inner
        return f"list of {inner}" if parts[-1] is ... else f"{len(parts)} × {inner}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, Section)):
        return "mapping"
    return WORDS[annotation] + (_bounds(metadata) if annotation in (int, float) else "")


def _bounds(metadata: Any) -> str:
    """The limits of a number in words, or ""."""
    found: dict[str, Any] = {}
    for item in metadata:
        for part in item.metadata if isinstance(item, FieldInfo) else [item]:
            for name in (*SIGNS, "multiple_of"):
                found |= {name: bound} if (bound := getattr(part, name, None)) is not None else {}
    multiple = f", a multiple of {found.pop('multiple_of')}" if "multiple_of" in found else ""
    if found.keys() == {"ge", "le"}:
        return f", {_number(found['ge'])} to {_number(found['le'])}{multiple}"
    signs = " and ".join(f"{sign} {_number(found[name])}" for name, sign in SIGNS.items() if name in found)
    return (f" {signs}" if signs else "") + multiple


def _number(bound: float) -> str:
    return f"{bound:,}" if bound < 1 << 30 else f"2^{int(bound).bit_length() - 1}"


def _kind_of(value: Any) -> str:
    return next(word for known, word in WORDS.items() if known is not Any and isinstance(value, known))


def _shown(value: Any) -> str:
    """A value as it is written in a config."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value) or '""'


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page())
    else:
        print(page(), end="")
