"""Ranges of S3 objects through obstore, whose requests cost a fifth of botocore's time of the processor.

s3fs stays what knows the configuration: endpoint, region, addressing and credentials are taken from its
client. What obstore would do otherwise is left to s3fs, and so is a bucket that obstore is sent away from.
"""

import asyncio
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cluster.storage import objects
from cluster.storage.kinds import run
from cluster.storage.retry import seconds

_LARGEST = 8 << 20  # bytes of a range; of larger ones the time of a request is no matter
_ELSEWHERE = {  # codes of S3 for a bucket in another region, to which botocore goes on
    "301",
    "307",
    "308",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_AMAZON = re.compile(r"^https://s3[.-][a-z0-9.-]*amazonaws\.com(\.cn)?$")
_lock = threading.Lock()


def fetch(fs: Any, path: str, start: int, end: int | None) -> bytes | None:
    """Bytes [start, end), or fewer where the object ends before; None if s3fs has to read them."""
    # A range from 0 on may be the whole object, whose checksum botocore compares.
    if not start or end is None or end - start > _LARGEST or not objects.works_here():
        return None
    bucket, key, version = fs.split_path(path)
    if version or not _is_plain(key):
        return None
    with _lock:
        stores = fs.__dict__.setdefault("dna_ranges", {})
        if bucket not in stores:
            stores[bucket] = _open(fs, bucket)
        store = stores[bucket]
    if store is None:
        return None
    try:
        with objects.asking(fs.s3.meta.endpoint_url, end - start) as library:
            return bytes(library.get_range(store, key, start=start, end=end))
    except objects.RefusedError as fault:
        if fault.response["Error"]["Code"] == "InvalidRange":
            return b""  # it begins beyond the end
        if fault.response["Error"]["Code"] not in _ELSEWHERE:
            raise
    except objects.UntrustedError:
        pass  # Python may trust other certificates than the machine
    with _lock:
        stores[bucket] = None
    return None


def why_not(fs: Any, bucket: str) -> str:
    """Why s3fs reads the ranges of ``bucket``; "" if obstore does."""
    client = fs.s3
    config = client.meta.config
    ways = config.s3 or {}
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket) or bucket.endswith("--x-s3"):
        return "the bucket is an access point or a directory bucket"
    server = urlsplit(client.meta.endpoint_url)
    if config.proxies or (server.scheme in getproxies() and not proxy_bypass(server.hostname or "")):
        return "there is a proxy"
    if not client._endpoint.http_session._verify:
        return "certificates are not checked"
    if any(ways.get(way) for way in ("use_accelerate_endpoint", "use_dualstack_endpoint")):
        return "the endpoint is accelerated or of two stacks"
    if getattr(config, "use_fips_endpoint", False) or getattr(config, "use_dualstack_endpoint", False):
        return "the endpoint is a special one"
    if ways.get("addressing_style") == "virtual" and not _AMAZON.match(client.meta.endpoint_url):
        return "the endpoint has a host for each bucket"
    if not _is_unsigned(client) and config.signature_version not in ("s3v4", "v4"):
        return f"requests are signed by {config.signature_version}"
    if not _is_unsigned(client) and client._request_signer._credentials is None:
        return "there are no credentials"
    return ""


def _open(fs: Any, bucket: str) -> Any:
    """obstore's store for ``bucket``, as s3fs would ask; None if that cannot be said in its options."""
    try:
        from obstore.store import S3Store
    except ImportError:
        return None
    if why_not(fs, bucket):
        return None
    client = fs.s3
    signing: dict[str, Any] = {"skip_signature": True}
    if not _is_unsigned(client):
        signing = {"credential_provider": _Credentials(fs, client._request_signer._credentials)}
    options = objects.client_options(seconds("DNA_STORE_TIMEOUT_SECONDS", 30))
    authorities = client._endpoint.http_session._verify
    if isinstance(authorities, str):  # of AWS_CA_BUNDLE or ca_bundle; obstore adds them to the machine's
        options["root_certificate"] = Path(authorities).read_bytes()
    return S3Store(
        bucket,
        endpoint=client.meta.endpoint_url,
        region=client.meta.region_name or "us-east-1",
        virtual_hosted_style_request=False,
        client_options=options,
        retry_config={"max_retries": 0},
        **signing,
    )


class _Credentials:
    """Botocore's credentials for obstore, which asks again before they end."""

    def __init__(self, fs: Any, found: Any) -> None:
        self._fs, self._found = fs, found

    def __call__(self) -> dict[str, Any]:
        keys = run(self._fs, asyncio.wait_for(self._found.get_frozen_credentials(), 60))
        ends: datetime | None = getattr(self._found, "_expiry_time", None)
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": ends,
        }


def _is_unsigned(client: Any) -> bool:
    return not isinstance(client.meta.config.signature_version, str)  # botocore's UNSIGNED


def _is_plain(key: str) -> bool:
    """Whether obstore takes the name of an object as it is."""
    return all(part not in ("", ".", "..") for part in key.split("/"))
