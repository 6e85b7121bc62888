"""Training of a whole network on a task; epoch and learning rate are chosen on dev.

Shapes: N rows, B of a batch, L letters, D hidden, K outputs.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.core import schedules
from trainer.evaluation import batching
from trainer.evaluation.embedding import mean_over_strands
from trainer.evaluation.precision import Resolved, computing_in, device_of
from trainer.evaluation.sequences import EncodedSequences
from trainer.evaluation.tasks.config import Finetune
from trainer.evaluation.tasks.kinds.kind import Array, TaskKind
from trainer.models.network import Network


@dataclass(frozen=True)
class Examples:
    """Sequences and their truth, as TaskKind.truth gives it."""

    sequences: EncodedSequences
    truth_N: Array


@dataclass(frozen=True)
class Training:
    """How a network is trained on a task, whatever it starts from."""

    kind: TaskKind
    config: Finetune
    precision: Resolved
    seed: int


class TaskNetwork(nn.Module):
    """A linear head on the mean of the letters' hidden states: codes [B, L] -> fp32 [B, K].

    The means of two sequences differ by a few hundredths of their size, and training moves what they have in
    common. So the head reads them standardised: in training by the batch, in prediction by fixed running
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
        return self.output(self.pool(codes_BL, length_B))

    def pool(self, codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
        pooled_BD: Tensor = self.network(codes_BL, length_B=length_B, nucleotides=False).pooled_BD
        return pooled_BD

    def output(self, pooled_BD: Tensor) -> Tensor:
        """In training ``pooled_BD`` is a whole batch, because its statistics are used."""
        output_BK: Tensor = self.head(self.standardise(pooled_BD))
        return output_BK.float()

    def read(self, sequences: EncodedSequences, *, precision: Resolved) -> Tensor:
        """fp32 [N, K] on the CPU, in eval mode: the mean of what both strands of each sequence give."""
        self.eval()
        device = device_of(self)
        with computing_in(precision, device):
            return mean_over_strands(sequences, self, device=device)


@dataclass(frozen=True)
class TrainedNetwork:
    """The best epoch on dev of the best learning rate, and its predictions for dev."""

    network: TaskNetwork
    training: Training
    dev_prediction: Array
    chosen: dict[str, Any]

    def predict(self, sequences: EncodedSequences) -> Array:
        return _predict(self.network, sequences, self.training)


def train_network(
    train: Examples, dev: Examples, *, start: Callable[[], Network], training: Training, device: torch.device
) -> TrainedNetwork:
    """The best epoch on dev over the grid of learning rates; each starts from ``start()`` with the same seed.

    Training reads a random strand of each row, prediction averages the outputs of both.

    Raises:
        RuntimeError: the loss is not finite at any learning rate. MemoryError: a sequence is too long.
    """
    best: _BestEpoch | None = None
    network: TaskNetwork | None = None
    for peak in training.config.lr:
        generator = torch.Generator().manual_seed(training.seed)
        network = TaskNetwork(start(), training.kind.outputs, generator).to(device)
        trainer = _Trainer(network, training, peak=peak, rows=len(train.truth_N), generator=generator)
        found = _best_epoch(trainer, train, dev, training=training)
        if found and (best is None or found.score > best.score):
            best = found
    if best is None or network is None:
        raise RuntimeError(
            f"fine-tuning diverged at every learning rate of {list(training.config.lr)}; give lower ones"
        )
    network.load_state_dict(best.weights)
    return TrainedNetwork(network, training, best.dev_prediction, best.chosen)


@dataclass(frozen=True)
class _BestEpoch:
    """The best epoch on dev at one learning rate."""

    score: float
    chosen: dict[str, float]
    weights: dict[str, Tensor]
    dev_prediction: Array


def _best_epoch(
    trainer: "_Trainer", train: Examples, dev: Examples, *, training: Training
) -> _BestEpoch | None:
    """Trains to the last epoch, the end of patience, or a loss that is not finite; None: the first had one.

    With patience ``chosen`` says how many epochs were run.
    """
    kind, config = training.kind, training.config
    best: _BestEpoch | None = None
    epochs = 0
    for epoch in range(1, config.epochs + 1):
        if best and config.patience and epoch - best.chosen["epoch"] > config.patience:
            break
        if not trainer.epoch(train):
            break
        epochs = epoch
        dev_prediction = _predict(trainer.network, dev.sequences, training)
        if not np.isfinite(dev_prediction).all():
            break
        score = kind.main_score(dev.truth_N, dev_prediction)
        if best is None or score > best.score:
            weights = copy.deepcopy(trainer.network.state_dict())
            best = _BestEpoch(score, {"lr": trainer.peak, "epoch": epoch}, weights, dev_prediction)
    if best and config.patience:
        best.chosen["epochs_run"] = epochs
    return best


def _predict(network: TaskNetwork, sequences: EncodedSequences, training: Training) -> Array:
    return training.kind.predict(network.read(sequences, precision=training.precision))


class _Trainer:
    """One training of one network at one peak learning rate, epoch by epoch."""

    def __init__(
        self,
        network: TaskNetwork,
        training: Training,
        *,
        peak: float,
        rows: int,
        generator: torch.Generator,
    ) -> None:
        self.network, self.peak = network, peak
        self._training, self._generator = training, generator
        self._batches = math.ceil(rows / training.config.batch)  # of one epoch, as even as can be
        self._rates = _learning_rates(training.config, peak=peak, batches=self._batches)
        self._parameters = [*network.network.backbone.parameters(), *network.head.parameters()]
        matrices = [p for p in self._parameters if p.ndim >= 2]
        vectors = [p for p in self._parameters if p.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": training.config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=peak,
        )

    def epoch(self, examples: Examples) -> bool:
        """Train on every row once, in a new order, on a random strand; False if the loss is not finite."""
        truth_N = torch.from_numpy(examples.truth_N)
        order_N = torch.randperm(len(truth_N), generator=self._generator)
        strand_N = torch.randint(2, (len(truth_N),), generator=self._generator)
        self.network.train()
        return all(
            self._step(examples.sequences, truth_N, index_B, strand_N[index_B])
            for index_B in order_N.tensor_split(self._batches)
        )

    def _step(self, sequences: EncodedSequences, truth_N: Tensor, index_B: Tensor, strand_B: Tensor) -> bool:
        """One optimizer step on the rows ``index_B``; False, and no step, if the loss is not finite."""
        rate = next(self._rates)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        device, length_B = device_of(self.network), sequences.length_N[index_B]
        parts = batching.parts_of_similar_length(length_B)  # a long row does not pad the short ones
        with batching.explain_out_of_memory(length_B):
            with computing_in(self._training.precision, device):
                pooled = [
                    self.network.pool(
                        *batching.padded_batch(
                            sequences, index_B[part], strand_B=strand_B[part], device=device
                        )
                    )
                    for part in parts
                ]
                output_BK = self.network.output(torch.cat(pooled))
            truth_B = truth_N[index_B[torch.cat(parts)]].to(device)
            loss = self._training.kind.loss(output_BK, truth_B)
            if not math.isfinite(loss.item()):
                return False
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, self._training.config.grad_clip)
        self._optimizer.step()
        return True


def _learning_rates(config: Finetune, *, peak: float, batches: int) -> Iterator[float]:
    """The rate of every step of all epochs: warm-up, then cosine to 0."""
    steps = config.epochs * batches
    for step in range(1, steps + 1):
        yield schedules.learning_rate(
            step, peak=peak, total_steps=steps, warmup_fraction=config.warmup, final_fraction=0
        )
