"""The typed config of `python -m data_prep build`: which references become which dataset."""

from data_prep.config.dataset import DataConfig
from data_prep.config.dedup import DedupConfig
from data_prep.config.homology import HomologyConfig
from data_prep.config.partners import PartnersConfig
from data_prep.config.reference import ReferenceConfig
from data_prep.config.split import BedSplit, CladeSplit, HeldOut, SplitConfig
from data_prep.config.tracks import RepeatsConfig, TrackConfig
from data_prep.config.values import Names
from data_prep.config.weights import WEIGHTS, WeightsConfig

__all__ = [
    "WEIGHTS",
    "BedSplit",
    "CladeSplit",
    "DataConfig",
    "DedupConfig",
    "HeldOut",
    "HomologyConfig",
    "Names",
    "PartnersConfig",
    "ReferenceConfig",
    "RepeatsConfig",
    "SplitConfig",
    "TrackConfig",
    "WeightsConfig",
]
