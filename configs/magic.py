"""What a file is, by its first bytes. The one list of them; standard library only."""

TWOBIT = "a .2bit file"
COMPRESSED = ("gzip", "bzip2", "xz", "zstd")  # formats that data_prep.sources.compression reads
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"PAR1\x15": "a Parquet file",  # PAR1 alone may be a contig's name
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!\x1a": "a RAR archive",
    b"BAM\x01": "a BAM file",
    b"CRAM": "a CRAM file",
    b"\x43\x27\x41\x1a": TWOBIT,
    b"\x1a\x41\x27\x43": TWOBIT,
}


def format_of(start: bytes) -> str:
    """The format of a file that begins with ``start`` (at least 8 bytes of it), as it stands in a message; ""
    if it may be text."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")
