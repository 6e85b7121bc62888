"""Google Cloud Storage: gs://bucket/name.

Credentials are those that obstore finds: GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT_KEY, what
``gcloud auth application-default login`` has left, or those of the machine. GOOGLE_SKIP_SIGNATURE=true asks
without any, for public buckets. STORAGE_EMULATOR_HOST names another server, which is asked without, too.
"""

import os
from typing import Any

from cluster.storage.objects import ObjectFileSystem


class GoogleStorage(ObjectFileSystem):
    protocol = ("gs", "gcs")
    server = "https://storage.googleapis.com"

    def __init__(self, *, timeout: float = 30.0) -> None:
        super().__init__(timeout=timeout)
        self._emulator = os.environ.get("STORAGE_EMULATOR_HOST", "").strip().rstrip("/")
        self.server = self._emulator or os.environ.get("GOOGLE_BASE_URL") or self.server

    def open_bucket(self, bucket: str, client: Any, retries: Any) -> Any:
        from obstore.store import GCSStore

        there: dict[str, Any] = {}
        if self._emulator:
            url = self._emulator if "://" in self._emulator else f"http://{self._emulator}"
            there = {"base_url": url, "bearer_token": "none"}  # skip_signature is for reads alone
        return GCSStore(bucket, client_options=client, retry_config=retries, **there)
