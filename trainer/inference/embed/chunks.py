"""The input in chunks: windows that are computed at once, and the columns that go with them.

A record is cut into pieces of as many windows as fit into a chunk, and a chunk has one piece or several. So
where a record is cut depends on itself alone, and so does every sum over it.

Shapes: N windows of a chunk, Q pieces of it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from data_prep import alphabet
from trainer.inference.embed.vectors import WindowBatch
from trainer.inference.embed.windows import Places, Tiling
from trainer.inference.readers.codes import CodedRows
from trainer.inference.sequences import EncodedSequences

_MOST_PIECES = 1 << 14


@dataclass(frozen=True)
class Chunk:
    """Some windows of some records, in order.

    Attributes:
        windows: what is computed.
        start_N: where each window begins in its record.
        piece_N: of which piece of the chunk it is.
        record_Q: the number of each piece's record, from 0.
        others: the input's other columns of each piece's record.
    """

    windows: WindowBatch
    start_N: Places
    piece_N: Places
    record_Q: Places
    others: pa.Table

    @property
    def letters(self) -> int:
        """How many letters count."""
        return int(self.windows.kept().sum())


def chunks_of(
    rows: Iterable[CodedRows], tiling: Tiling, *, letters: int, repeated: int | None = None
) -> Iterator[Chunk]:
    """The records of ``rows`` in chunks of about as many ``letters``, and at least a window.

    ``repeated``: where each letter has a row, the bytes of the other columns that the rows of a chunk may
    repeat.
    """
    chunk, number = _Open(), 0
    for batch in rows:
        for row, codes in enumerate(batch.codes):
            windows = np.stack(tiling.windows(len(codes)))
            width = 0 if repeated is None else batch.others.slice(row, 1).nbytes
            fitting = letters if repeated is None else min(letters, repeated // max(1, width))
            most = max(1, fitting // tiling.length)
            for first in range(0, windows.shape[1], most):
                piece = windows[:, first : first + most]
                size = int((piece[1] - piece[0]).sum())
                is_full = chunk.letters + size > letters or chunk.pieces >= _MOST_PIECES
                is_full |= repeated is not None and chunk.repeated + size * width > repeated
                if chunk.letters and is_full:
                    yield chunk.complete()
                    chunk = _Open()
                chunk.add(codes, piece, number, (batch.others, row))
                chunk.letters += size
                chunk.repeated += size * width
            number += 1
            del codes
        del batch  # its records may be large, and the next ones are read while this function waits
    if chunk.letters:
        yield chunk.complete()


@dataclass
class _Open:
    """A chunk to which pieces are added; ``letters``: of their windows; ``repeated``: bytes of the other
    columns, once for each letter."""

    letters: int = 0
    repeated: int = 0
    _codes: list[alphabet.Codes] = field(default_factory=list)
    _places: list[Places] = field(default_factory=list)  # [4, windows of a piece]
    _records: list[int] = field(default_factory=list)
    _others: list[tuple[pa.Table, list[int]]] = field(default_factory=list)

    @property
    def pieces(self) -> int:
        return len(self._records)

    def add(self, codes: alphabet.Codes, piece: Places, record: int, others: tuple[pa.Table, int]) -> None:
        """Adds the windows ``piece`` of the record ``codes``, whose other columns are a row of a table."""
        self._codes += [codes[start:end].copy() for start, end in piece[:2].T.tolist()]
        self._places.append(piece)
        self._records.append(record)
        table, row = others
        if not self._others or self._others[-1][0] is not table:
            self._others.append((table, []))
        self._others[-1][1].append(row)

    def complete(self) -> Chunk:
        start_N, _, keep_start_N, keep_end_N = np.concatenate(self._places, axis=1)
        windows = WindowBatch(
            EncodedSequences.from_codes(self._codes),
            torch.from_numpy(keep_start_N - start_N),
            torch.from_numpy(keep_end_N - start_N),
        )
        piece_N = np.repeat(np.arange(self.pieces), [piece.shape[1] for piece in self._places])
        others = pa.concat_tables([table.take(rows) for table, rows in self._others])
        return Chunk(windows, start_N, piece_N, np.array(self._records), others)
