"""What ``train.precision: auto`` means in a study, whose parts may run on different machines."""

from collections.abc import Sequence

import torch

from trainer.core.precision import best_precision
from trainer.run.run_status import begun_precision
from trainer.study.config import Pretrain


def automatic_precision(folders: Sequence[str], pretrain: Pretrain) -> str:
    """The precision of all pretrainings: what those in ``folders`` that began already compute in, so that
    another machine goes on with them; else the best of the device that they will have.

    A supervised pretraining (``pretrain.cluster``) has the devices of its nodes, which are taken to be like
    this machine's. StoreError: a folder cannot be read.
    """
    begun = next(filter(None, map(begun_precision, folders)), None)
    on_gpu = torch.cuda.is_available() and bool(pretrain.gpus or pretrain.cluster)
    return begun or best_precision(torch.device("cuda" if on_gpu else "cpu"))
