"""What commands on files of sequences share: the input's own columns ride along, what was read is told."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa

from cluster.process import paths
from cluster.storage.uri import identity
from configs import ConfigError, redact
from trainer.inference.readers.formats import format_of

_RENAMED = "input_"  # goes before the name of an input's column that the result has, too


def refuse_files(*, input_uri: str, output: str, reference: str | None) -> None:
    """ConfigError, before any work, where the files of --input, --output and --reference cannot be right."""
    inputs = {"--input": input_uri, "--reference": reference}
    paths.refuse_lost(outputs={"--output": output}, inputs=[(key, uri) for key, uri in inputs.items() if uri])
    if identity(output) == identity(input_uri):
        raise ConfigError(f"--output {redact(output)} is the input; give another name")
    if format_of(input_uri) == "bed" and not reference:
        raise ConfigError(
            f"--input {redact(input_uri)} is a BED; give --reference, the genome that its intervals are "
            "cut from (FASTA or .2bit)"
        )


def passed_on(others: pa.Table, own: Collection[str]) -> pa.Table:
    """The input's columns as they stand beside those of the result, whose names are ``own``.

    Raises:
        ValueError: two columns would have one name.
    """
    names = [_RENAMED + name if name in own else name for name in others.column_names]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"the input's column {min(twice).removeprefix(_RENAMED)!r} would be passed on as {min(twice)!r}, "
            "which is the name of another; rename one of them"
        )
    return others.rename_columns(names)


@dataclass
class InputCount:
    """What was read of an input."""

    rows: int = 0
    ambiguous: int = 0
    cut: bool = False
    columns: tuple[str, ...] = ()

    def add(self, *, rows: int, ambiguous: int, cut: bool, columns: Collection[str]) -> None:
        self.rows += rows
        self.ambiguous += ambiguous
        self.cut |= cut
        self.columns = tuple(columns)

    def sentences(self, uri: str, own: Collection[str]) -> Iterator[str]:
        """What a user should know of the input at ``uri``; ``own``: the names of the result's columns."""
        if renamed := [name for name in self.columns if name in own]:
            yield f"the input's own {', '.join(renamed)} stands there with {_RENAMED} before the name"
        if self.ambiguous:
            yield f"{self.ambiguous:,} ambiguous letters (IUPAC codes such as R or Y) were read as N"
        if self.cut:
            yield f"{redact(uri)}: its last line has no end; if the file was cut short, get it again"
