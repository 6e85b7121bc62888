"""The format of an output, which the end of its name says."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from cluster.storage import store
from configs import ConfigError, redact

FORMATS = {
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".npy": "NumPy",
    ".csv.gz": "CSV, gzip",
    ".tsv.gz": "TSV, gzip",
    ".zarr": "zarr",
}
NO_TABLES = (".npy", ".zarr")  # they hold one array of numbers


def format_of(uri: str, formats: Mapping[str, str] = FORMATS, *, example: str = "embeddings.parquet") -> str:
    """A key of ``formats`` by the end of the name, in upper or lower case; Parquet for a name without one.

    ``example``: the name of a file of this kind.

    Raises:
        ConfigError: the name ends otherwise, or is that of a folder and of a format that is a file.
    """
    name = uri if store.is_local(uri) else redact(uri).partition("?")[0]
    ends = [end.lower() for end in PurePosixPath(store.basename(name)).suffixes]
    end = "".join(ends[-2:] if ends[-1:] == [".gz"] else ends[-1:]) or ".parquet"
    if end != ".zarr":
        refuse_folder(uri, example)
    if end not in formats:
        raise ConfigError(
            f"output {redact(uri)} ends in {end}, which is no format here; the end of the name says the "
            f"format: {', '.join(formats)}"
        )
    return end


def refuse_folder(uri: str, name: str) -> None:
    """ConfigError, before any work, where a file is to be written and ``uri`` is a folder; ``name`` is for
    example."""
    if uri.endswith("/") or (store.is_local(uri) and store.local_path(uri).is_dir()):
        raise ConfigError(
            f"output {redact(uri)} is a folder; give the name of a file in it, such as "
            f"{redact(store.join(uri, name))}"
        )
