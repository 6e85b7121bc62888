"""Backbones by the name that ``model.name`` and an export's ``model_type`` use."""

from trainer.models.backbone import Backbone
from trainer.models.chordmixer import ChordMixer
from trainer.models.dilated_conv import DilatedConv

MODELS: dict[str, type[Backbone]] = {"findna": ChordMixer, "dilated-conv": DilatedConv}
