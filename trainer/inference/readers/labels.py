"""The text in a label cell -> the label that is meant."""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(-?\d+)(\.0+)?", re.ASCII)
_YES, _NO = {"1", "true", "yes"}, {"0", "false", "no"}


def meant(text: str, labels: Sequence[str]) -> str:
    """The label that ``text`` stands for: itself, or the one of ``labels`` that is another spelling of the
    same number (1 and 1.0; not 01) or of the same truth (true, True, TRUE, 1). Itself where none is, or more
    than one."""
    if text in labels:
        return text
    spellings = _spellings(text) & set(labels)
    return spellings.pop() if len(spellings) == 1 else text


def _spellings(text: str) -> set[str]:
    word = text.lower()
    if word in ("true", "false"):
        return {word, word.title(), word.upper(), "1" if word == "true" else "0"}
    number = _NUMBER.fullmatch(text)
    return {number[1], f"{number[1]}.0"} if number else set()


def named(cells: Sequence[str], columns: Sequence[str]) -> str:
    """The names of the columns whose cells say yes, joined by commas.

    Raises:
        ValueError: a cell says neither yes nor no; the text follows the row's place.
    """
    chosen = []
    for cell, column in zip(cells, columns, strict=True):
        number = _NUMBER.fullmatch(cell)
        word = number[1] if number else cell.lower()
        if word not in _YES | _NO:
            raise ValueError(
                f"column {column!r} has {cell!r}, and 1 or 0 (true or false, yes or no) is needed"
            )
        if word in _YES:
            chosen.append(column)
    return ",".join(chosen)
