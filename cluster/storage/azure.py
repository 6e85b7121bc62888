"""Azure Blob Storage: az://container/name, or abfs://container@account.dfs.core.windows.net/name.

The account is that of the URI, else AZURE_STORAGE_ACCOUNT_NAME. Credentials are those that obstore finds:
AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, a client (AZURE_CLIENT_ID, _SECRET, AZURE_TENANT_ID), or
those of the machine. AZURE_SKIP_SIGNATURE=true asks without any, for public containers.
"""

import os
from typing import Any

from cluster.storage.objects import ObjectFileSystem
from cluster.storage.retry import StoreError

_PUBLIC = "core.windows.net"


class AzureStorage(ObjectFileSystem):
    """A path is ``container@account/name``."""

    protocol = ("az", "abfs", "abfss")

    def __init__(self, *, timeout: float = 30.0) -> None:
        super().__init__(timeout=timeout)
        self._endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT") or ""
        self.server = self._endpoint or f"https://*.blob.{_PUBLIC}"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        """``path`` with its account: StoreError where none is known."""
        container, slash, name = path.partition("://")[2].rstrip("/").partition("/")
        container, _, host = container.partition("@")
        account, _, service = host.partition(".")
        account = account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        if not account:
            raise StoreError(
                f"cannot use {path}: it names no account; set AZURE_STORAGE_ACCOUNT_NAME, or write "
                f"abfs://{container}@ACCOUNT.dfs.{_PUBLIC}/{name}"
            )
        cloud = service.removeprefix("dfs.").removeprefix("blob.")
        place = account if cloud in ("", _PUBLIC) else f"{account}.blob.{cloud}"
        return f"{container}@{place}{slash}{name}"

    def open_bucket(self, bucket: str, client: Any, retries: Any) -> Any:
        from obstore.store import AzureStore

        container, _, place = bucket.partition("@")
        there: dict[str, Any] = {"endpoint": self._endpoint} if self._endpoint else {}
        if "." in place:
            there = {"endpoint": f"https://{place}"}
        return AzureStore(
            container,
            account_name=place.partition(".")[0],
            client_options=client,
            retry_config=retries,
            **there,
        )
