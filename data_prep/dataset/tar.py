"""webdataset, imported as if torch were not installed: it needs torch for loaders that are not used here, and
importing torch would cost every command of data_prep and every worker of a build 2 s and 180 MB."""

import sys

_blocked = "torch" not in sys.modules
if _blocked:
    sys.modules["torch"] = None  # type: ignore[assignment]  # so that an import of it fails
try:
    from webdataset import TarWriter
    from webdataset.tariterators import group_by_keys, tar_file_expander
finally:
    if _blocked:
        del sys.modules["torch"]

__all__ = ["TarWriter", "group_by_keys", "tar_file_expander"]
