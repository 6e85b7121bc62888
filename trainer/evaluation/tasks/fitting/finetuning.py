"""Training of a whole network on a task; learning rate, epoch and pooling are chosen on dev.

Shapes: N rows, B of a batch, L letters, D hidden, F pooled features, K outputs, H heads.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.evaluation.tasks.fitting.optimisation import Optimiser
from trainer.evaluation.tasks.fitting.recipe import Finetune, HeadConfig, PoolingName
from trainer.evaluation.tasks.fitting.task_network import Head, TaskNetwork
from trainer.evaluation.tasks.kinds.kind import Array, TaskKind
from trainer.inference import batching
from trainer.inference.embedding import Strand, letters_of, mean_over_strands
from trainer.inference.precision import Resolved, computing_in, device_of
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network


@dataclass(frozen=True)
class Examples:
    """Sequences and their truth, as TaskKind.truth gives it."""

    sequences: EncodedSequences
    truth_N: Array


@dataclass(frozen=True)
class Training:
    """How a network is trained on a task, whatever it starts from.

    ``pretrained``: whether it starts from weights that are worth keeping.
    """

    kind: TaskKind
    config: Finetune
    precision: Resolved
    seed: int
    strand: Strand = "both"
    pretrained: bool = True


@dataclass(frozen=True)
class TrainedNetwork:
    """The best epoch and pooling on dev of the best learning rate, and its predictions for dev."""

    network: TaskNetwork
    training: Training
    dev_prediction: Array
    chosen: dict[str, Any]

    def predict(self, sequences: EncodedSequences) -> Array:
        return self.training.kind.predict(self.network.read(sequences, precision=self.training.precision))


def train_network(
    train: Examples, dev: Examples, *, start: Callable[[], Network], training: Training, device: torch.device
) -> TrainedNetwork:
    """The best on dev over the grid of learning rates; each starts from ``start()`` with the same seed.

    Raises:
        RuntimeError: the loss is not finite at any learning rate. MemoryError: a sequence is too long.
    """
    best: _Best | None = None
    for peak in training.config.lr:
        trainer = _Trainer(start().to(device), training, peak=peak, rows=len(train.truth_N))
        found = _best_reading(trainer, train, dev)
        if found and (best is None or found.score > best.score):
            best = found
    if best is None:
        raise RuntimeError(
            f"fine-tuning diverged at every learning rate of {list(training.config.lr)}; give lower ones"
        )
    return TrainedNetwork(best.network, training, best.dev_prediction, best.chosen)


@dataclass(frozen=True)
class _Best:
    """The best reading of dev at one learning rate."""

    score: float
    chosen: dict[str, Any]
    network: TaskNetwork
    dev_prediction: Array


def _best_reading(trainer: "_Trainer", train: Examples, dev: Examples) -> _Best | None:
    """Trains to the last epoch, the end of patience, or a loss that is not finite; None: none was before it.

    With patience ``chosen`` says how many epochs were run.
    """
    kind, config, length = trainer.training.kind, trainer.training.config, trainer.length
    best: _Best | None = None
    epochs = worse = 0
    for epoch in range(1, length.epochs + 1):
        if best and config.patience and worse >= config.patience:
            break
        if not trainer.epoch(train):
            break
        epochs = epoch
        if epoch % length.stride and epoch < length.epochs:
            continue
        predictions = [kind.predict(output_NK) for output_NK in trainer.read(dev.sequences)]
        if not all(np.isfinite(prediction).all() for prediction in predictions):
            break
        scores = [kind.main_score(dev.truth_N, prediction) for prediction in predictions]
        number = int(np.argmax(scores))  # of equals the first pooling
        worse += 1
        if best is None or scores[number] > best.score:
            worse = 0
            chosen: dict[str, Any] = {"lr": trainer.peak, "epoch": epoch}
            if len(config.pooling) > 1:
                chosen["pooling"] = config.pooling[number]
            best = _Best(scores[number], chosen, trainer.snapshot(number), predictions[number])
    if best and config.patience:
        best.chosen["epochs_run"] = epochs
    return best


class _Trainer:
    """One training of one network with all its heads at one peak learning rate, epoch by epoch."""

    def __init__(self, network: Network, training: Training, *, peak: float, rows: int) -> None:
        self.network, self.training, self.peak = network, training, peak
        self.length = training.config.length(rows)
        self._generator = torch.Generator().manual_seed(training.seed)
        device, names = device_of(network), training.config.pooling
        self._heads = [self._head(name, self._generator).to(device) for name in names]
        self._optimiser = Optimiser(
            network.backbone,
            self._heads,
            config=training.config,
            peak=peak,
            steps=self.length.steps,
            pretrained=training.pretrained,
        )

    def _head(self, pooling: PoolingName, generator: torch.Generator) -> Head:
        return Head(
            HeadConfig(pooling=pooling, norm=self.training.config.norm),
            hidden_size=self.network.backbone.hidden_size,
            outputs=self.training.kind.outputs,
            generator=generator,
            dropout=self.training.config.dropout,
        )

    def snapshot(self, number: int) -> TaskNetwork:
        """A copy of the network as it is, with the head of the pooling ``number``."""
        network = copy.deepcopy(self.network)
        head = self._head(self.training.config.pooling[number], torch.Generator())
        head.load_state_dict(self._heads[number].state_dict())
        return TaskNetwork(network, head.to(device_of(network)), strand=self.training.strand).eval()

    def epoch(self, examples: Examples) -> bool:
        """Train on every row once, in a new order, each on a random strand if both count; False if the loss
        is not finite."""
        truth_N = torch.from_numpy(examples.truth_N)
        order_N = torch.randperm(len(truth_N), generator=self._generator)
        strands = 2 if self.training.strand == "both" else 1
        strand_N = torch.randint(strands, (len(truth_N),), generator=self._generator)
        self._train(True)
        return all(
            self._step(examples.sequences, truth_N, index_B, strand_N[index_B])
            for index_B in order_N.tensor_split(self.length.batches)
        )

    def read(self, sequences: EncodedSequences) -> list[Tensor]:
        """fp32 [N, K] on the CPU of each head, in eval mode."""
        self._train(False)
        device = device_of(self.network)

        def outputs(codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
            letters_BLD = letters_of(self.network, codes_BL, length_B)
            return torch.stack([head.output(head.pooling(letters_BLD, length_B)) for head in self._heads], 1)

        with computing_in(self.training.precision, device):
            output_NHK = mean_over_strands(sequences, outputs, device=device, strand=self.training.strand)
        return list(output_NHK.unbind(1))

    def _train(self, mode: bool) -> None:
        for part in (self.network, *self._heads):
            part.train(mode)

    def _step(self, sequences: EncodedSequences, truth_N: Tensor, index_B: Tensor, strand_B: Tensor) -> bool:
        """One optimizer step on the rows ``index_B``; False, and no step, if the loss is not finite."""
        device, length_B = device_of(self.network), sequences.length_N[index_B]
        parts = batching.parts_of_similar_length(length_B)  # a long row does not pad the short ones
        with batching.explain_out_of_memory(length_B):
            with computing_in(self.training.precision, device):
                pooled = [
                    self._pool(
                        batching.padded_batch(
                            sequences, index_B[part], strand_B=strand_B[part], device=device
                        )
                    )
                    for part in parts
                ]
                outputs = [
                    head.output(torch.cat(pooled_BF))
                    for head, *pooled_BF in zip(self._heads, *pooled, strict=True)
                ]
            truth_B = truth_N[index_B[torch.cat(parts)]].to(device)
            smoothing = self.training.config.label_smoothing
            losses = [
                self.training.kind.smooth_loss(output_BK, truth_B, smoothing=smoothing)
                for output_BK in outputs
            ]
            loss = torch.stack(losses).mean()
            if not math.isfinite(loss.item()):
                return False
            self._optimiser.zero_grad()
            loss.backward()
        self._optimiser.step()
        return True

    def _pool(self, batch: batching.PaddedBatch) -> list[Tensor]:
        """[B, F] for each head."""
        with torch.set_grad_enabled(not self._optimiser.frozen):
            letters_BLD = letters_of(self.network, *batch)
        return [head.pooling(letters_BLD, batch.length_B) for head in self._heads]
