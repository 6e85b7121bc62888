"""Values of the config: one string or a list of strings; odd numbers."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

Names = tuple[str, ...]


def strings(value: Any) -> Any:
    """One string means a list of one, so that ``split.val=IV`` and ``uri: a.fa`` need no brackets. Numbers
    are names as they are written: Ensembl calls its contigs 1, 2, X."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(
        isinstance(item, str | int | float) and not isinstance(item, bool) and str(item).strip()
        for item in values
    ):
        raise ValueError(
            "must be a string or a list of strings, none of them empty; true, false and null need quotes "
            "to be names"
        )
    return tuple(map(str, values))


def at_least_one(what: str) -> AfterValidator:
    def check(names: Names) -> Names:
        if not names:
            raise ValueError(f"must name at least one {what}")
        return names

    return AfterValidator(check)


Strings = Annotated[Names, BeforeValidator(strings)]


def odd(k: int) -> int:
    """``k``, the letters of a k-mer. ValueError if it is even."""
    if k % 2 == 0:
        raise ValueError(f"must be odd, so that no k-mer is its own reverse complement, not {k}")
    return k
