"""The model that a command is given: a version of the registry or an exported folder, with its files."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.storage import store
from configs import redact
from trainer.models import pretrained
from trainer.models.network import Network
from trainer.tracking.registry import Registry

DEFAULT_LENGTH = 1000  # of windows, where no pretraining length is known


@dataclass(frozen=True)
class OpenedModel:
    """A network and where it is from.

    Attributes:
        name, version: of the registry; of a folder its URI and "".
        length: of the windows that it was pretrained on.
        files: what ``trainer.models.pretrained.load`` needs of a folder.
    """

    name: str
    version: str
    length: int
    network: Network
    files: Mapping[str, bytes]

    @property
    def title(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name

    def remarks(self, length: int | None) -> list[str]:
        """A sentence where ``length`` was not asked for, and is not that of the pretraining."""
        if self.version or length:
            return []
        return [
            "a folder does not say on what windows its model was pretrained; --length sets another than "
            f"{self.length}"
        ]

    @property
    def sha256(self) -> str:
        """Of its weights."""
        return hashlib.sha256(self.files[pretrained.WEIGHTS]).hexdigest()


def open_model(uri: str, *, track_uri: str | None) -> OpenedModel:
    """The model at ``uri``: models:/NAME@ALIAS, models:/NAME/VERSION, or any folder of an export.

    Raises:
        ConfigError, ValueError, StoreError or TrackError, one sentence: there is none, or its files do not
            fit this code.
    """
    if not uri.startswith("models:"):
        if not store.exists(store.join(uri, pretrained.CONFIG)):
            raise ValueError(
                f"{redact(uri)} is no export: it has no {pretrained.CONFIG}; give models:/NAME@ALIAS, or the "
                "folder of an export"
            )
        files = pretrained.read_needed(uri)
        network = pretrained.load_read(uri, files)
        return OpenedModel(redact(uri).rstrip("/"), "", DEFAULT_LENGTH, network, files)
    registry = Registry(track_uri)
    version = registry.version(uri)
    length = DEFAULT_LENGTH
    if version.run_id:
        length = int(registry.run(version.run_id).data.params.get("data.length", DEFAULT_LENGTH))
    with tempfile.TemporaryDirectory() as folder:
        local = str(registry.download(version, Path(folder)))
        files = pretrained.read_needed(local)
        network = pretrained.load_read(local, files)
    return OpenedModel(version.name, str(version.version), length, network, files)
