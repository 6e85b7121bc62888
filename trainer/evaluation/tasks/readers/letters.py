"""The letters of a sequence cell, checked."""

from data_prep import alphabet

_MISSING = {"NA", "NAN"}  # missing values as pandas and R write them, which are nucleotide letters, too


def checked(cell: str, where: str) -> tuple[str, int]:
    """The letters of ``cell``, A, C, G, T, N in upper case (U is T); and how many other IUPAC letters became
    N. ValueError, which begins with ``where``, if it is no sequence."""
    text = cell.strip()
    if text.upper() in _MISSING:
        raise ValueError(
            f"{where}: the sequence is {text!r}, as tables write a missing value; remove the row"
        )
    try:
        codes, _, ambiguous = alphabet.encode(text.encode())
    except ValueError as fault:
        raise ValueError(f"{where}: {fault}") from fault
    if not codes.size:
        raise ValueError(f"{where}: the sequence is empty")
    return alphabet.decode(codes).decode(), ambiguous
