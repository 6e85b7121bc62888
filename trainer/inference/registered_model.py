"""Models of the registry, opened."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.models import pretrained
from trainer.models.network import Network
from trainer.tracking.registry import Registry


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model: its network in eval mode, and its config.json.

    ``run_id``: the run that registered it, if any.
    """

    name: str
    version: str
    run_id: str | None
    network: Network
    config: dict[str, Any]


def open_model(registry: Registry, model_uri: str) -> RegisteredModel:
    """The model that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` means.

    Raises: ConfigError, ValueError or TrackError, one sentence: no such model, or its files do not fit this
    code.
    """
    version = registry.version(model_uri)
    with tempfile.TemporaryDirectory() as folder:
        local = str(registry.download(version, Path(folder)))
        network, config = pretrained.load(local), pretrained.read_config(local)
    return RegisteredModel(version.name, str(version.version), version.run_id or None, network, config)
