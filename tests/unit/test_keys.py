"""docs/keys.md is what the config models and the reference configs say."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from configs.numbers import Above0, Fraction, Positive
from data_prep.config import BedSplit
from tests import keys
from tests.unit.test_reference_configs import FOLDER, MODELS, comments


@pytest.fixture(scope="module")
def page() -> str:
    return keys.page()


def test_the_page_is_current(page: str) -> None:
    assert keys.PAGE.read_text() == page, f"write it anew: {keys.WRITE}"


@pytest.mark.parametrize("name", MODELS)
def test_every_key_is_on_the_page(name: str, page: str) -> None:
    title = keys.TITLES[name][0]
    part = page[page.index(f"\n## {title}\n") :].split("\n## ")[1]
    told = comments((FOLDER / name).read_text())
    missing = [
        key
        for key in told
        if f"| `{key.replace('.0.', '[].')}` |" not in part and f"### {title}: {key}\n" not in part
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (
            "| `data.workers` | whole number, 0 to 256 or null | `null` | Threads of a rank that",
            "a limit and null",
        ),
        (
            "| `loss.distill.balance` | `centring`, `sinkhorn`, `none` | `centring` | Against collapse:",
            "choices",
        ),
        ("| `train.steps` | whole number ≥ 1 | *required* | Optimiser steps. |", "required"),
        ("| `train` | text or null | *required* unless dev or test is given | A file or URI", "a condition"),
        ("| `data.uri` | text or list of mapping | *required* | A dataset", "one or a list"),
        (
            "| `track.uri` | text | `${oc.env:MLFLOW_TRACKING_URI,sqlite:///mlflow.db}` | Tracking server",
            "as the file writes it, not as this machine reads it",
        ),
        ("| `max_train_rows` | whole number or list of (whole number or null) or null |", "nested"),
    ],
)
def test_rows(row: str, key: str, page: str) -> None:
    assert f"\n{row}" in page, key


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Positive, "whole number ≥ 1"),
        (Fraction, "number, 0 to 1"),
        (Above0 | None, "number > 0 or null"),
        (Annotated[int, Field(ge=0, lt=1 << 63)], "whole number ≥ 0 and < 2^63"),
        (
            Annotated[int, Field(ge=1024, le=1 << 20, multiple_of=4)],
            "whole number, 1,024 to 1,048,576, a multiple of 4",
        ),
        (Annotated[str, Field(min_length=1)], "text"),
        (tuple[tuple[str, str], ...] | None, "list of 2 × text or null"),
        (Literal["a", "b"], "`a`, `b`"),
        (BedSplit | dict[str, int] | bool, "mapping or true or false"),
    ],
)
def test_types_in_words(annotation: object, words: str) -> None:
    assert keys.kind(annotation) == words
