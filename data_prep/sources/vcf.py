"""Records of VCF and BCF files, plain or compressed, local or remote. The only user of pysam on
this floor."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.storage import store
from configs import magic, redact
from data_prep.sources import compression

_SHOWN = 5
_BGZIP = b"BC"  # in the first gzip header's extra field


def records(uri: str, samples: Sequence[str]) -> Iterator[Any]:
    """The records of the VCF or BCF at ``uri``, with ``samples`` alone."""
    import pysam  # only who reads variants needs it

    where = redact(uri)
    with _on_disk(uri) as path, _silent(pysam):
        try:
            opened = pysam.VariantFile(path)
        except (OSError, ValueError) as fault:
            raise _damaged(where, fault) from fault
        with opened as file:
            there = list(file.header.samples)
            if missing := [sample for sample in samples if sample not in there]:
                more = f" and {len(there) - _SHOWN:,} more" if len(there) > _SHOWN else ""
                has = f"{', '.join(there[:_SHOWN]) or 'none'}{more}"
                raise ValueError(f"{where} has no sample {missing[0]}; it has {has}")
            file.subset_samples(samples)
            records = iter(file)
            while True:
                try:
                    record = next(records, None)
                except (OSError, ValueError) as fault:
                    raise _damaged(where, fault) from fault
                if record is None:
                    return
                yield record


def _damaged(where: str, fault: Exception) -> ValueError:
    why = " ".join(str(fault).split())
    return ValueError(f"{where} is no VCF or BCF, or is damaged ({why}); get it again")


@contextlib.contextmanager
def _on_disk(uri: str) -> Iterator[str]:
    """The path of the file at ``uri``, or of a copy of it while it is read. Of compressed files htslib reads
    only those of bgzip; others are copied as text."""
    with store.open_read(uri) as source:
        start = source.read(16)
    as_it_is = not magic.format_of(start) or start[12:14] == _BGZIP
    if store.is_local(uri) and as_it_is:
        yield str(store.local_path(uri))
        return
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(store.chunks(uri) if as_it_is else compression.plain(uri))
        file.flush()
        yield file.name


@contextlib.contextmanager
def _silent(pysam: Any) -> Iterator[None]:
    """htslib would write to stderr by itself."""
    before = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(before)
