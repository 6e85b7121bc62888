"""The page of a report: every text escaped, pictures inside, nothing that a browser would fetch."""

import base64
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from trainer.report.page import Picture, Section, render

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'é' {{ 7 * 7 }}"


class Reader(HTMLParser):
    """Tags with their attributes, and the texts between."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.texts.append(data)


def test_every_text_is_escaped_and_stands_where_it_belongs() -> None:
    picture = Picture("p", HOSTILE, b"\x89PNG\xff")
    sections = [
        Section(HOSTILE, [HOSTILE, "two"], ("a", HOSTILE), [("1", HOSTILE), ("3", "4")], [picture]),
        Section("folded", rows=[("x", "y")], folded=True),
        Section("empty", headings=("not", "shown")),
    ]
    reader = Reader(render(HOSTILE, HOSTILE, sections))
    assert reader.open == []
    first = [HOSTILE, HOSTILE, "two", "a", HOSTILE, "1", HOSTILE, "3", "4"]
    assert reader.texts == [HOSTILE, HOSTILE, HOSTILE, *first, "folded", "x", "y", "empty"]
    (image,) = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert image == {
        "alt": HOSTILE,
        "src": f"data:image/png;base64,{base64.b64encode(picture.png).decode()}",
    }
    names = [tag for tag, _ in reader.tags]
    assert "script" not in names
    assert (names.count("section"), names.count("details"), names.count("table")) == (2, 1, 2)
    policy = {"http-equiv": "Content-Security-Policy"}
    contents = [
        attributes["content"] for _, attributes in reader.tags if policy.items() <= attributes.items()
    ]
    assert contents == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_a_section_that_lacks_something_is_no_half_page() -> None:
    with pytest.raises(UndefinedError, match="no attribute"):
        render("t", "s", [object()])  # type: ignore[list-item]
