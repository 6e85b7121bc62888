"""Datasets and other repositories on the Hugging Face Hub, to be read: hf://datasets/OWNER/NAME@REVISION/file.

Addresses and the token (HF_TOKEN, or that of ``hf auth login``) are huggingface_hub's. Requests go over the
same session as those to web servers, with the same retries: the library has retries and caches of its own.
"""

import os
import re
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec.spec import AbstractFileSystem

from cluster.storage import web
from cluster.storage.kinds import run
from cluster.storage.retry import StoreError

_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="next"')


class Hub(AbstractFileSystem):
    """Repositories, each at a revision (default: main). A path is what follows ``hf://``."""

    protocol = "hf"
    cachable = False
    read_only = (
        "the Hugging Face Hub is only read here; write to a folder or a bucket, and upload that with `hf`"
    )

    def __init__(self, *, timeout: float = 30.0) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers

        super().__init__()
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        headers = build_hf_headers(library_name="dna-distill")
        self._headers = {name: value for name, value in headers.items() if value}
        self._web = fsspec.filesystem(
            "https", use_listings_cache=False, skip_instance_cache=True, **web.options(timeout=timeout)
        )

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size, type, and the hash of the content as ETag."""
        kind, repository, revision, name = _parts(path)
        about = f"{self._endpoint}/api/{kind}s/{repository}"
        if not name:
            run(self._web, self._ask("GET", f"{about}/revision/{revision}"))
            return {"name": path, "size": 0, "type": "directory"}
        found = run(self._web, self._ask("POST", f"{about}/paths-info/{revision}", {"paths": [name]}))[0]
        if not found:
            raise FileNotFoundError(path)
        return _entry(path, found[0])

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        kind, repository, revision, name = _parts(path)
        folder = "" if kind == "model" else f"{kind}s/"
        url = f"{self._endpoint}/{folder}{repository}/resolve/{revision}/{quote(name)}"
        return web.fetch(self._web, url, start or 0, end, self._headers)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """Every file below ``path``, by its path."""
        kind, repository, revision, name = _parts(path)
        root = path.removesuffix(name).rstrip("/")
        url = f"{self._endpoint}/api/{kind}s/{repository}/tree/{revision}"
        url += f"/{quote(name)}" * bool(name) + "?recursive=true"
        found: dict[str, Any] = {}
        while url:
            try:
                page, url = run(self._web, self._ask("GET", url))
            except FileNotFoundError:
                self.info(root)  # FileNotFoundError again if there is no such repository
                break
            found |= {
                f"{root}/{each['path']}": _entry(f"{root}/{each['path']}", each)
                for each in page
                if each["type"] == "file"
            }
        return found if detail else sorted(found)

    async def _ask(self, method: str, url: str, data: Any = None) -> tuple[Any, str]:
        """The answer, and the URL of the next page of it; "" if it is the last."""
        session = await self._web.set_session()
        async with await session.request(method, url, json=data, headers=self._headers) as body:
            web.check(body, url)
            following = _NEXT.search(body.headers.get("Link", ""))
            return await body.json(), following[1] if following else ""


def _parts(path: str) -> tuple[str, str, str, str]:
    """Kind of repository, its name, the revision as it stands in URLs, and the file.

    Raises:
        StoreError: ``path`` does not name a repository.
    """
    from huggingface_hub.utils import parse_hf_uri

    try:
        parsed = parse_hf_uri(f"hf://{path}")
    except ValueError as fault:
        words = " ".join(str(fault).split())
        raise StoreError(f"cannot use hf://{path}: {words}; write hf://datasets/OWNER/NAME/FILE") from fault
    if parsed.type not in ("model", "dataset", "space"):
        raise StoreError(f"cannot use hf://{path}: a {parsed.type} is not read here, only a dataset or model")
    return parsed.type, parsed.id, quote(parsed.revision or "main", safe=""), parsed.path_in_repo


def _entry(path: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": path,
        "size": found.get("size") or 0,
        "type": "file" if found["type"] == "file" else "directory",
        "ETag": (found.get("lfs") or found).get("oid"),
    }
