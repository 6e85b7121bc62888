"""The config section ``model``: the backbone's own, chosen by ``name``."""

from typing import Annotated

from configs.registry import Chosen
from trainer.models.backbone import Backbone, BackboneConfig
from trainer.models.registry import MODELS

DEFAULT = "findna"

Model = Annotated[
    BackboneConfig,
    Chosen(lambda: {name: kind.Config for name, kind in MODELS.items()}, default=DEFAULT),
]


def default_model() -> BackboneConfig:
    return MODELS[DEFAULT].Config.model_validate({})


def build_backbone(config: BackboneConfig, *, activation_checkpointing: bool = False) -> Backbone:
    """The backbone of a ``model`` section, randomly initialised from torch's generator."""
    return MODELS[config.name](config, activation_checkpointing=activation_checkpointing)
