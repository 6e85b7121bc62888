"""Training of a whole network on a task, the epoch and learning rate chosen on dev. Knows not where weights
come from.

Shapes: N rows, B rows of a batch, L letters, D hidden, K outputs.
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from trainer.core import schedules
from trainer.evaluation.embedding import Rows, both_strands, computing_in, memory_for
from trainer.evaluation.tasks.classification import Array, Classification
from trainer.evaluation.tasks.config import Finetune
from trainer.evaluation.tasks.data import Split
from trainer.evaluation.tasks.linear import Fitted
from trainer.models.network import Network


class Classifier(nn.Module):
    """A linear head on the mean of the letters' hidden states: codes [B, L] -> fp32 [B, K].

    The means of two sequences differ by a few hundredths of their size, and training moves what they have in
    common: so the head reads them standardised, in training by the batch, in prediction by fixed running
    statistics.
    """

    def __init__(self, network: Network, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.network = network
        self.standardise = nn.BatchNorm1d(network.backbone.hidden_size, affine=False)
        self.head = nn.Linear(network.backbone.hidden_size, outputs)
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
        return self.classify(self.pool(codes_BL, length_B))

    def pool(self, codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
        pooled_BD: Tensor = self.network(codes_BL, length_B=length_B, nucleotides=False).pooled_BD
        return pooled_BD

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """Of a whole batch in training, which the statistics of ``standardise`` are those of."""
        logits_BK: Tensor = self.head(self.standardise(pooled_BD))
        return logits_BK.float()


def fit_network(
    train: Split,
    dev: Split,
    *,
    start: Callable[[], Network],
    rows: Callable[[Split], Rows],
    kind: Classification,
    config: Finetune,
    seed: int,
    device: torch.device,
    precision: str,
) -> Fitted:
    """The best epoch on dev over the grid of learning rates, every trial from ``start()`` with the same
    ``seed``.

    Training reads a random strand of each row, prediction averages the logits of both.
    Raises: RuntimeError if the loss is not finite at any learning rate.
    """
    best: tuple[float, dict[str, float], dict[str, Tensor], Array] | None = None
    classifier: Classifier | None = None
    for peak in config.lr:
        generator = torch.Generator().manual_seed(seed)
        classifier = Classifier(start(), kind.outputs, generator).to(device)
        trial = _Trial(classifier, config, kind, peak, generator, device, precision, len(train))
        for epoch in range(1, config.epochs + 1):
            if not trial.epoch(rows(train), torch.from_numpy(train.truth_N)):
                break
            dev_NK = kind.probabilities(_logits(classifier, rows(dev), device, precision))
            if not np.isfinite(dev_NK).all():
                break
            score = kind.metrics(dev.truth_N, dev_NK)[kind.selects_by]
            if best is None or score > best[0]:
                best = (score, {"lr": peak, "epoch": epoch}, copy.deepcopy(classifier.state_dict()), dev_NK)
    if best is None or classifier is None:
        raise RuntimeError(
            f"fine-tuning diverged at every learning rate of {list(config.lr)}; give lower ones"
        )
    _, chosen, weights, dev_NK = best
    classifier.load_state_dict(weights)
    selected = classifier
    return Fitted(
        lambda split: kind.probabilities(_logits(selected, rows(split), device, precision)),
        dev_NK,
        dict(chosen),
    )


class _Trial:
    """One training of one classifier at one learning rate, epoch by epoch."""

    def __init__(
        self,
        classifier: Classifier,
        config: Finetune,
        kind: Classification,
        peak: float,
        generator: torch.Generator,
        device: torch.device,
        precision: str,
        count: int,
    ) -> None:
        self.classifier, self.config, self.kind, self.peak = classifier, config, kind, peak
        self.generator, self.device, self.precision = generator, device, precision
        self.batches = math.ceil(count / config.batch)  # of one epoch, as even as can be
        self.steps = config.epochs * self.batches
        self.step = 0
        trained = [*classifier.network.backbone.parameters(), *classifier.head.parameters()]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.trained = trained
        self.optimiser = torch.optim.AdamW(groups, lr=peak)

    def epoch(self, rows: Rows, truth_N: Tensor) -> bool:
        """Every row once, in a new order, a random strand of each; False if the loss left the finite
        numbers."""
        order_N = torch.randperm(len(truth_N), generator=self.generator)
        strand_N = torch.randint(2, (len(truth_N),), generator=self.generator)
        self.classifier.train()
        for index_B in order_N.tensor_split(self.batches):
            self.step += 1
            rate = schedules.learning_rate(
                self.step,
                peak=self.peak,
                total_steps=self.steps,
                warmup_fraction=self.config.warmup,
                final_fraction=0,
            )
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            parts = [index_B[part] for part in rows.alike(index_B)]  # a long row does not pad the short ones
            with memory_for(rows.length_N[index_B]):
                with computing_in(self.precision, self.device):
                    pooled = [
                        self.classifier.pool(*rows.batch(part, strand_N[part], self.device)) for part in parts
                    ]
                    logits_BK = self.classifier.classify(torch.cat(pooled))
                loss = self.kind.loss(logits_BK, truth_N[torch.cat(parts)].to(self.device))
                if not math.isfinite(loss.item()):
                    return False
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
            nn.utils.clip_grad_norm_(self.trained, self.config.grad_clip)
            self.optimiser.step()
        return True


def _logits(classifier: Classifier, rows: Rows, device: torch.device, precision: str) -> Tensor:
    classifier.eval()
    with computing_in(precision, device):
        return both_strands(rows, classifier, device=device)
