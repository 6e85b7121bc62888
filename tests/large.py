"""A configuration of 1 B parameters, as overrides of findna.yaml: wider and not deeper, since 11 groups reach
as far as a window of 1,000 letters is long."""

from pathlib import Path

PRESET = Path(__file__).parents[1] / "configs/train/findna.yaml"
ONE_BILLION = [
    "model.group_channels=192",
    "model.intermediate_size=8448",
    "model.num_layers=28",
    "model.norm=layer",
    "data.lanes=192",
    "train.global_batch=1536",
    "train.micro_batch=24",
]
