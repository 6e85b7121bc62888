"""Where the pretrainings of a study lie, and what ``train.precision: auto`` means for them.

Parts of a study may run on different machines.
"""

import torch

from cluster.storage import store
from trainer.core.precision import best_precision
from trainer.run.run_status import begun_precision
from trainer.study.config import StudyConfig


def run_dir(config: StudyConfig, arm: str, seed: int) -> str:
    return store.join(config.output, "pretraining", f"{arm}-s{seed}")


def automatic_precision(config: StudyConfig, arm: str) -> str:
    """What the pretrainings of ``arm`` that began already compute in, so that another machine goes on with
    them; else those of other arms, which are compared with it; else the best of their device.

    A supervised pretraining (``pretrain.cluster``) has the devices of its nodes, which are taken to be like
    this machine's. StoreError: a folder cannot be read.
    """
    arms = sorted(config.pretrained(), key=lambda other: other != arm)
    folders = (run_dir(config, one, seed) for one in arms for seed in config.pretrain.seeds)
    begun = next(filter(None, map(begun_precision, folders)), None)
    on_gpu = torch.cuda.is_available() and bool(config.pretrain.gpus or config.pretrain.cluster)
    return begun or best_precision(torch.device("cuda" if on_gpu else "cpu"))
