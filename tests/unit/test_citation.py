"""CITATION.cff is a valid Citation File Format 1.2.0, of the version that pyproject.toml has."""

from typing import Any

import pytest
import yaml

from tests.unit.test_dependencies import PROJECT
from tests.unit.test_house import ROOT

# Keys of the schema, https://github.com/citation-file-format/citation-file-format, that we use.
KEYS = {
    "cff-version",
    "message",
    "title",
    "type",
    "abstract",
    "version",
    "license",
    "authors",
    "keywords",
    "references",
}
OF_A_REFERENCE = {"type", "title", "authors", "journal", "volume", "year", "start", "notes"}


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    return found


def test_it_has_what_the_format_wants(citation: dict[str, Any]) -> None:
    assert citation.keys() == KEYS
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert [author["name"] for author in citation["authors"]] == ["dna-distill contributors"]


def test_it_is_of_this_version_and_licence(citation: dict[str, Any]) -> None:
    assert citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]["text"]


def test_the_method_is_a_reference(citation: dict[str, Any]) -> None:
    (method,) = citation["references"]
    assert method.keys() == OF_A_REFERENCE
    assert (method["type"], method["journal"], method["volume"], method["year"]) == (
        "article",
        "Neural Networks",
        183,
        2025,
    )
    assert all(author["family-names"] for author in method["authors"])
