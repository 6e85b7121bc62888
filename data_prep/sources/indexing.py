"""A source -> a copy or the file itself, with an index, so that it is readable in ranges."""

import collections
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.process.progress import OnProgress, Stage
from cluster.storage import store
from configs import magic, redact
from data_prep.sources import packages, texts, twobit
from data_prep.sources.fasta_index import Regularity, rewrite, write_index
from data_prep.sources.handles import Handle, Located, stamp


def index_plain(uri: str, version: str, stem: Path, on_progress: OnProgress) -> Located:
    with store.open_read(packages.file_of(uri)) as file:
        start = file.read(16)
    if magic.format_of(start) == magic.TWOBIT:
        return _index_twobit(uri, version, stem)
    # pyfaidx takes any file with such a name for a bgzip.
    if store.is_local(uri) and start.startswith(b">") and not uri.lower().endswith((".gz", ".bgz")):
        path, index = str(store.local_path(uri)), Path(f"{stem}.fai")
        digest, regular = hashlib.sha256(), Regularity()
        for chunk in hashed(_text(uri, on_progress), digest):
            regular.feed(chunk)
        if regular and (lengths := write_index(path, index)) is not None:
            handle = Handle(uri, path, str(index), digest.hexdigest(), stamp(path))
            return _located(handle, lengths, version)
    return _index_copy(uri, version, stem, on_progress, number_repeated=False)


def index_numbered(uri: str, version: str, stem: Path, on_progress: OnProgress) -> Located:
    with store.open_read(packages.file_of(uri)) as file:
        kind = magic.format_of(file.read(16))
    if kind == magic.TWOBIT:  # which has no name twice
        return _index_twobit(uri, version, stem)
    return _index_copy(uri, version, stem, on_progress, number_repeated=True)


def _index_copy(
    uri: str, version: str, stem: Path, on_progress: OnProgress, *, number_repeated: bool
) -> Located:
    """From a copy with even lines. A wrong file is refused here: fasta.pieces checks all of it."""
    path, index = f"{stem}.fa", Path(f"{stem}.fa.fai")
    digest = hashlib.sha256()
    with store.publish(path) as target:
        text = hashed(_text(uri, on_progress), digest)
        rewrite(text, target, uri=uri, number_repeated=number_repeated)
    lengths = write_index(path, index)
    assert lengths is not None, f"{uri}: its rewritten copy {path} cannot be indexed"
    handle = Handle(uri, path, str(index), digest.hexdigest(), stamp(path), number_repeated)
    return _located(handle, lengths, version)


def _index_twobit(uri: str, version: str, stem: Path) -> Located:
    digest = hashlib.sha256()
    chunks = hashed(store.chunks(uri), digest)
    if store.is_local(uri):
        path = str(store.local_path(uri))
        collections.deque(chunks, maxlen=0)
    else:
        path = f"{stem}.2bit"
        with store.publish(path) as target:
            target.writelines(chunks)
    path = twobit.readable(path, f"{stem}.le.2bit", uri=uri)
    lengths = twobit.TwoBit(path, uri=uri).contigs()
    return _located(Handle(uri, path, "", digest.hexdigest(), stamp(path)), lengths, version)


def _located(handle: Handle, lengths: dict[str, int], version: str) -> Located:
    contigs = {name: length for name, length in lengths.items() if length}
    if not contigs:
        raise ValueError(f"{handle.uri}: no sequence in its {len(lengths)} record{'s' * (len(lengths) != 1)}")
    return Located(handle, contigs, len(lengths) - len(contigs), version, "")


def _text(uri: str, on_progress: OnProgress) -> Iterator[bytes]:
    stage = Stage(on_progress, f"read {store.basename(redact(uri))}")
    for chunk in texts.text(uri):
        stage.advance(len(chunk))
        yield chunk


def hashed(chunks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
