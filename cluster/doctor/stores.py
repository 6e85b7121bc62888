"""Which stores can be opened here, and how ranges of an S3 bucket are read."""

import importlib.util
from collections.abc import Iterator

from cluster.doctor.finding import Finding
from cluster.storage import s3_ranges, uri

_LIBRARIES = {"s3": "s3fs", "gs": "obstore", "az": "obstore", "https": "aiohttp", "hf": "huggingface_hub"}


def kinds() -> Iterator[Finding]:
    """The kinds of URI whose library is installed; a warning where one is not that a run may need."""
    there = {scheme: importlib.util.find_spec(library) is not None for scheme, library in _LIBRARIES.items()}
    found = ", ".join(f"{scheme}://" for scheme, usable in there.items() if usable) or "local files alone"
    missing = [scheme for scheme, usable in there.items() if not usable]
    if not missing:
        yield Finding("stores", "ok", found)
        return
    extras = sorted({uri.extra_of(scheme) for scheme in missing})
    how = " or ".join(f"pip install 'dna-distill[{extra}]'" for extra in extras)
    advice = f"for {', '.join(f'{scheme}://' for scheme in missing)}: {how}"
    yield Finding("stores", "ok" if missing == ["hf"] else "warning", found, advice)


def ranges(store: str) -> Iterator[Finding]:
    """Whether blocks of a dataset in the bucket of ``store`` are read in the fast way."""
    if not store.startswith(("s3://", "s3a://")):
        return
    fs, path = uri.resolve(store)
    why = s3_ranges.why_not(fs, fs.split_path(path)[0])
    found = f"by s3fs, since {why}: more CPU for each block" if why else "by obstore"
    yield Finding("store, ranges", "ok", found)
