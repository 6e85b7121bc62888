"""Markdown as MLflow's pages show it."""

from collections.abc import Sequence

_GAP = "&emsp;"  # MLflow's pages leave no room between the columns of a table


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, gap: str = _GAP) -> str:
    """A table; no cell can end another or be taken for HTML. ``gap``: what stands between two columns."""
    lines = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in (headings, *rows)]
    head, *body = ["| " + f"{gap} | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(headings), *body])
