"""A report as one HTML page that loads nothing from anywhere: text, tables and embedded pictures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Picture:
    """``name``: of its PNG file, without the ending. ``text``: for those who cannot see it."""

    name: str
    text: str
    png: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Section:
    """One part of the page. ``rows`` stand under ``headings``; ``folded``: closed until a reader opens it."""

    title: str
    sentences: Sequence[str] = ()
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()
    folded: bool = False


def render(title: str, subtitle: str, sections: Sequence[Section]) -> bytes:
    """The page, UTF-8. Every text is escaped; a content policy forbids any request."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template(_TEMPLATE).render(title=title, subtitle=subtitle, sections=sections)
    return page.encode()
