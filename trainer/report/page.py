"""A report as one HTML page that loads nothing from anywhere: sections of text, tables and embedded
pictures."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto;
  padding: 0 1.2em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin-top: 2em;
  border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: .9em; margin: .6em 0 }
td, th { padding: .2em .9em .2em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee;
overflow-wrap: anywhere } td { font-variant-numeric: tabular-nums }
img { max-width: 100%; display: block; margin: .6em 0 } .note { color: #666 } details { margin-top: 2em }
"""


@dataclass(frozen=True)
class Section:
    """One part of the page: ``rows`` stand under ``headings``, ``pictures`` are (name, alternative text, PNG
    bytes)."""

    title: str
    sentences: Sequence[str] = ()
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[tuple[str, str, bytes]] = field(default=())
    folded: bool = False


def render(title: str, subtitle: str, sections: Sequence[Section]) -> bytes:
    """The page, UTF-8. Every text is escaped; a content policy forbids any request."""
    body = "\n".join(_section(section) for section in sections)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{html.escape(title)}</h1><p class="note">{html.escape(subtitle)}</p>\n{body}\n</body></html>\n'
    )
    return page.encode()


def _section(section: Section) -> str:
    parts = [f"<p>{html.escape(sentence)}</p>" for sentence in section.sentences]
    if section.rows:
        parts.append(_table(section.headings, section.rows))
    parts += [
        f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for _, text, data in section.pictures
    ]
    title, inner = html.escape(section.title), "\n".join(parts)
    if section.folded:
        return f"<details><summary>{title}</summary>\n{inner}\n</details>"
    return f"<section><h2>{title}</h2>\n{inner}\n</section>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    lines = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>" + "\n".join(lines) + "</tbody></table>"
