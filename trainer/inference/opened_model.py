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
_FILES = (pretrained.CONFIG, pretrained.WEIGHTS)


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
        return OpenedModel(redact(uri).rstrip("/"), "", DEFAULT_LENGTH, pretrained.load(uri), _read(uri))
    registry = Registry(track_uri)
    version = registry.version(uri)
    length = DEFAULT_LENGTH
    if version.run_id:
        length = int(registry.run(version.run_id).data.params.get("data.length", DEFAULT_LENGTH))
    with tempfile.TemporaryDirectory() as folder:
        local = str(registry.download(version, Path(folder)))
        network, files = pretrained.load(local), _read(local)
    return OpenedModel(version.name, str(version.version), length, network, files)


def _read(uri: str) -> dict[str, bytes]:
    return {name: store.read_bytes(store.join(uri, name)) for name in _FILES}
