"""The four ways to a task's answer: k-mer counts, the frozen backbone, the whole network, and the same from
scratch."""

from typing import Any

import torch

from trainer.evaluation.embedding import Rows, embed, resolve_precision
from trainer.evaluation.tasks import KINDS
from trainer.evaluation.tasks.config import Mode, TaskConfig
from trainer.evaluation.tasks.data import Split
from trainer.evaluation.tasks.finetuning import fit_network
from trainer.evaluation.tasks.linear import Fitted, fit_linear, kmer_counts
from trainer.models import pretrained
from trainer.models.network import Network


class Workbench:
    """One network and one task; what seeds share (codes, k-mer counts, embeddings) is computed once."""

    def __init__(
        self, network: Network, export_config: dict[str, Any], task: TaskConfig, device: torch.device
    ) -> None:
        self._network, self._export_config = network.to(device), export_config
        self._task, self._device = task, device
        self._shared: dict[tuple[str, Split], Any] = {}
        self.kind = KINDS[task.kind](task.labels)
        self.precision = {
            "probe": resolve_precision(task.probe.precision, device),
            "finetune": resolve_precision(task.finetune.precision, device),
        }

    def fit(self, mode: Mode, train: Split, dev: Split, *, seed: int) -> Fitted:
        """``mode`` fitted to ``train``, with everything that is chosen chosen on ``dev``."""
        task = self._task
        if mode in ("kmer", "probe"):
            grid, features = (task.kmer.C, self.kmers) if mode == "kmer" else (task.probe.C, self.embeddings)
            return fit_linear(
                train, dev, features=features, kind=self.kind, grid=grid, scale=mode == "probe", seed=seed
            )

        def start() -> Network:
            """The teacher's weights, or new ones: a function of the seed alone."""
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = pretrained.fresh(self._export_config)
            if mode == "finetune":
                network.load_state_dict(self._network.state_dict(), strict=True)
            return network

        return fit_network(
            train,
            dev,
            start=start,
            rows=self.rows,
            kind=self.kind,
            config=task.finetune,
            seed=seed,
            device=self._device,
            precision=self.precision["finetune"],
        )

    def rows(self, split: Split) -> Rows:
        return self._once("rows", split, lambda: Rows.of(split.codes()))

    def kmers(self, split: Split) -> Any:
        return self._once("kmer", split, lambda: kmer_counts(split.letters, k=self._task.kmer.k))

    def embeddings(self, split: Split) -> Any:
        """float64 [N, 2·D]: mean and max over the letters, each averaged over both strands."""

        def compute() -> Any:
            pooled = embed(
                self._network, self.rows(split), device=self._device, precision=self.precision["probe"]
            )
            return torch.cat(pooled, 1).double().numpy()

        return self._once("probe", split, compute)

    def _once(self, what: str, split: Split, compute: Any) -> Any:
        key = (what, split)
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]
