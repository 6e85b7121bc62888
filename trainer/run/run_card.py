"""The model cards of a run's exports, from what the run itself knows."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch

from cluster.process.processes import age_s
from trainer.data.dataset import Dataset
from trainer.distill.method import Method
from trainer.engine.engine import Engine
from trainer.models import pretrained
from trainer.models.network import Network
from trainer.run import goodput, run_spec
from trainer.run.config import TrainConfig
from trainer.run.flops import step_flops
from trainer.sharing.card import render
from trainer.sharing.card_facts import CardFacts, ComputeFacts, DataFacts, data_facts
from trainer.tracking.provenance import UNKNOWN, git_commit


class RunCard:
    """Of one run, on its first rank."""

    def __init__(
        self,
        config: TrainConfig,
        network: Network,
        *,
        data: Sequence[DataFacts] = (),
        compute: Callable[[int], ComputeFacts] = lambda step: ComputeFacts(),
        held_out: Callable[[int], Mapping[str, float]] = lambda step: {},
    ) -> None:
        """``compute``, ``held_out``: of a step; the latter is empty where there was no validation."""
        self._config, self._network, self._data = config, network, data
        self._compute, self._held_out = compute, held_out

    def at(self, step: int) -> str:
        """README.md of the export of ``step``."""
        config, commit = self._config, git_commit()
        read_by_users = (self._network.backbone, self._network.nucleotide)
        return render(
            CardFacts(
                name=config.run.name,
                config=pretrained.shared_config(self._network),
                parameters=sum(map(pretrained.parameter_count, read_by_users)),
                step=step,
                settings=run_spec.params(config),
                data=self._data,
                compute=self._compute(step),
                held_out=self._held_out(step),
                code="" if commit == UNKNOWN else commit,
            )
        )


def run_card(
    config: TrainConfig,
    engine: Engine,
    *,
    method: Method,
    datasets: Sequence[Dataset],
    resumed_at: int,
    held_out: Callable[[int], Mapping[str, float]],
) -> RunCard:
    """The cards of a run that goes on after step ``resumed_at``; ``held_out`` as RunCard's."""
    began = goodput.began(config.run.dir, step=resumed_at) or time.time() - age_s(os.getpid())
    group, network = engine.group, engine.network

    def compute(step: int) -> ComputeFacts:
        starts = [*(part.from_step for part in config.data.length), config.train.steps]
        flops = sum(
            max(0, min(last, step) - first) * step_flops(method, network, length=part.length) * group.size
            for part, (first, last) in zip(config.data.length, pairwise(starts), strict=True)
        )
        bp, wall_s = config.bp(0, step), time.time() - began
        return ComputeFacts(bp, flops, _devices(engine.device, group.size), wall_s)

    data = [
        data_facts(dataset.uri, dataset.manifest, dataset.digest, weight=part.weight)
        for dataset, part in zip(datasets, config.data.uri, strict=True)
    ]
    return RunCard(config, network, data=data, compute=compute, held_out=held_out)


def _devices(device: torch.device, ranks: int) -> str:
    if device.type == "cuda":
        return f"{ranks} × {torch.cuda.get_device_name(device)}"
    return f"CPU, {ranks} process{'es' * (ranks != 1)}"
