"""Lists and removes everything below one folder of a filesystem. Names are literal.

Other prefixes are not touched: ``exp`` does not include ``exp2/x``, and ``exp[1]`` is not a pattern. An
object store may hold an empty object ``exp/``, which some tools write for a folder: it is not listed, and it
is removed with the folder.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

from cluster.storage.kinds import speaks
from cluster.storage.retry import StoreError

_MOST = 1000  # keys that S3 deletes in one call


class RefusedError(OSError):
    """S3's error for a key that a bulk delete did not delete; ``response`` has the form of botocore's."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(f"{error.get('Key')}: {error.get('Code')}")
        self.response = {"Error": error}


def sizes(fs: Any, path: str) -> dict[str, int]:
    """Bytes of every file below the folder ``path``, by its name relative to it."""
    root = path.rstrip("/") + "/"
    if speaks(fs, "file"):
        found = _walk(root)
    elif speaks(fs, "s3"):
        bucket, key, _ = fs.split_path(path.rstrip("/"))
        found = {f"{bucket}/{name}": size for name, size in _objects(fs, bucket, f"{key}/" if key else "")}
    else:
        found = {
            name: info["size"] or 0
            for name, info in fs.find(path, detail=True).items()
            if info["type"] != "directory"
        }
    return {
        name.removeprefix(root): size
        for name, size in found.items()
        if name.startswith(root) and (size or not name.endswith("/"))
    }


def remove(fs: Any, path: str) -> None:
    """Delete the file ``path``, or the folder with everything in it. A link is removed, and its target stays.

    FileNotFoundError if there is nothing; StoreError for a whole bucket.
    """
    if "/" not in path.rstrip("/"):  # of the local disk and the like, paths begin with one
        raise StoreError(f"cannot remove {path}: it is a whole bucket; name a prefix in it")
    if speaks(fs, "file"):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    elif speaks(fs, "s3"):
        _remove_objects(fs, path)
    else:
        _remove_files(fs, path)


def _walk(root: str) -> dict[str, int]:
    # By default os.walk and fsspec skip folders that they may not read.
    def stop(fault: OSError) -> None:
        if not isinstance(fault, FileNotFoundError | NotADirectoryError):
            raise fault

    found = {}
    for folder, _, names in os.walk(root, onerror=stop, followlinks=True):
        for path in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                found[path] = os.stat(path).st_size
    return found


def _objects(fs: Any, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
    """(key, bytes) of every object whose key begins with ``prefix``. FileNotFoundError for a missing
    bucket."""
    page: dict[str, Any] = {"IsTruncated": True}
    while page.get("IsTruncated"):
        more = {"ContinuationToken": page["NextContinuationToken"]} if "NextContinuationToken" in page else {}
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        yield from ((each["Key"], each["Size"]) for each in page.get("Contents", []))


def _remove_objects(fs: Any, path: str) -> None:
    bucket, key, _ = fs.split_path(path.rstrip("/"))
    keys = [name for name, _ in _objects(fs, bucket, f"{key}/")]
    with contextlib.suppress(FileNotFoundError):
        fs.call_s3("head_object", Bucket=bucket, Key=key)
        keys.append(key)
    if not keys:
        raise FileNotFoundError(path)
    if len(keys) == 1:  # a permission and a call that every service has
        fs.call_s3("delete_object", Bucket=bucket, Key=keys[0])
    for at in range(0, len(keys) if len(keys) > 1 else 0, _MOST):
        objects = [{"Key": name} for name in keys[at : at + _MOST]]
        answer = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        for error in answer.get("Errors", []):
            raise RefusedError(error)


def _remove_files(fs: Any, path: str) -> None:
    below = {
        name: info["type"]
        for name, info in fs.find(path, withdirs=True, detail=True).items()
        if name == path or name.startswith(f"{path}/")
    }
    if not below:
        fs.info(path)  # FileNotFoundError, unless it is an empty folder
    folders = {name for name, kind in below.items() if kind == "directory" or name.endswith("/")}
    for name in below.keys() - folders:
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            fs.rm_file(name)
    # Deepest first. Object stores, whose paths begin without a slash, have no folders, and rmdir may remove
    # the bucket.
    for name in sorted(folders | {path}, reverse=True) if path.startswith("/") else ():
        with contextlib.suppress(OSError):
            fs.rmdir(name)
