"""What a file is, by its first bytes. The one list of them; standard library only."""

import re

TWOBIT = "a .2bit file"
ZIP = "a zip archive or an Excel file"
BIGWIG = "a bigWig file"
COMPRESSED = ("gzip", "bzip2", "xz", "zstd")  # formats that data_prep.sources.compression reads
# More than the letters of a signature, where these alone may begin a text: PAR1 is a region of the human X.
_MAGIC = {
    rb"\x1f\x8b": "gzip",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "bzip2",
    rb"\xfd7zXZ\0": "xz",
    rb"\x28\xb5\x2f\xfd": "zstd",
    rb"PK\x03\x04": ZIP,
    rb"\xd0\xcf\x11\xe0": "an old Excel file",
    rb"PAR1\x15": "a Parquet file",
    rb"\x89HDF": "an HDF5 file",
    rb"%PDF-": "a PDF",
    rb"7z\xbc\xaf": "a 7z archive",
    rb"Rar!\x1a": "a RAR archive",
    rb"BAM\x01": "a BAM file",
    rb"CRAM[\x01-\x09]": "a CRAM file",
    rb"\x43\x27\x41\x1a": TWOBIT,
    rb"\x1a\x41\x27\x43": TWOBIT,
    rb"\x26\xfc\x8f\x88": BIGWIG,
    rb"\x88\x8f\xfc\x26": BIGWIG,
    rb"\xeb\xf2\x89\x87|\x87\x89\xf2\xeb": "a bigBed file",
}


def format_of(start: bytes) -> str:
    """The format of a file that begins with ``start`` (at least 10 bytes), in words for a message; "" if it
    may be text."""
    return next((name for magic, name in _MAGIC.items() if re.match(magic, start)), "")
