"""What of a config determines the bytes of a dataset beside its references: as the manifest has it."""

import hashlib
from collections.abc import Sequence
from typing import Any

from cluster.storage import store
from data_prep.config import BedSplit, CladeSplit, DataConfig


def partner_settings(config: DataConfig) -> dict[str, Any] | None:
    """What determines the partner table beside the plan; None where none is wanted."""
    names = config.partners.names([assembly.name for assembly in config.assemblies()])
    settings = config.partners.model_dump(mode="json", exclude={"between"})
    return {"between": names, **settings} if names else None


def split_settings(config: DataConfig) -> dict[str, Any]:
    """What of the split determines the dataset's bytes; of a BED file that is its content, of a clade its
    assemblies."""
    split = config.split
    settings = split.model_dump(mode="json", include={"val", "test", "gap"})
    for name, value in (("val", split.val), ("test", split.test)):
        if isinstance(value, BedSplit):
            settings[name] = {"bed": digests(value.bed)}
        elif isinstance(value, CladeSplit):
            settings[name] = {"clade": list(value.clade), "assemblies": config.of_clade(value)}
    if split.leakage == "drop":
        settings |= {"leakage": "drop", "min_bp": split.min_bp}
    if split.by == "homology":
        settings |= {
            "by": "homology",
            "homology": split.homology.model_dump(mode="json"),
            "min_bp": split.min_bp,
        }
    if config.dedup.mode == "drop":
        settings |= {"dedup": config.dedup.model_dump(mode="json")}
    return settings


def digests(uris: Sequence[str]) -> list[str]:
    """The sha256 of each file."""
    return [hashlib.sha256(store.read_bytes(uri)).hexdigest() for uri in uris]
