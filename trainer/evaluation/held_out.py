"""Held-out evaluation on a fixed set of windows: every scored position is hidden, so that copying scores
nothing."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.process.heartbeat import heart
from cluster.storage.store import StoreError
from data_prep import alphabet
from data_prep.shards import FormatError
from trainer.core import collectives, random
from trainer.core.collectives import Group
from trainer.data.dataset import Dataset, open_datasets
from trainer.data.windows import WindowBuilder, Windows, choose_windows
from trainer.distill import representation_metrics
from trainer.evaluation import markov
from trainer.evaluation.markov import Counts
from trainer.models.network import Network, Outputs
from trainer.run.config import TrainConfig
from trainer.views.view_batch import lengths, make_view_pairs

_MASK_SEED = 20260101  # the same hidden positions in every run, so that runs compare
HEALTH_WINDOWS = 256
_COUNTS = 1 << 50  # k-mers that a mixture is counted in: far from both overflow and rounding

Place = tuple[int, int, int, int]  # dataset, block, start, end


@dataclass(frozen=True)
class _Rows:
    """``real``: how many of the first rows are windows to be counted; a batch of 0 keeps step with the other
    ranks."""

    real: int
    windows: Windows
    codes_BL: Tensor  # the letters
    visible_BL: Tensor  # the letters, MASK where scored
    scored_BL: Tensor
    length_B: Tensor | None
    context_BL8: np.ndarray[Any, Any]


class Validator:
    """Windows of the val split, this rank's share of them, and the baselines on the same positions.

    Of a mixture, each dataset gives windows by its weight; ``left_out`` are the URIs of those without a val
    split. Windows have the length that the run ends with. A damaged block in a val split is fatal whatever
    data.on_corrupt says, since all runs are to be measured on the same windows.

    Every rank has as many batches as the others, for under ZeRO-3 each forward gathers the weights from all
    of them: a rank that has no window left for a batch calls the network with one that counts for nothing.
    """

    def __init__(self, config: TrainConfig, *, flank: int, device: torch.device, group: Group) -> None:
        self.config, self.group, self.device = config, group, device
        with collectives.together(group, device=device):
            datasets = open_datasets(config.data, "val", some_empty=True)
            self.left_out = [
                part.uri for number, part in enumerate(config.data.uri) if number not in datasets
            ]
            places = _places(config, datasets)
            mine, size = places[group.rank :: group.size], config.val.batch
            self._batches = [
                self._rows(datasets, mine[first : first + size], flank, spare=places[0])
                for first in range(0, -(-len(places) // group.size), size)
            ]
        self.scored = int(self._sum([sum(float(rows.scored_BL.sum()) for rows in self._batches)])[0])
        with collectives.together(group, device=device):
            if not self.scored:
                uris = ", ".join(dataset.uri for dataset in datasets.values())
                raise ValueError(f"the val split of {uris} has no letter A, C, G or T to score")

    def baselines(self, train: Sequence[Dataset]) -> dict[str, float]:
        """``val/mlm_accuracy_majority|markov``, ``val/scored_positions``; each rank counts its share of the
        blocks.

        ``train``: the datasets of data.uri, in its order. Counts of several are mixed by weight / bp, as
        samples are.
        """
        letters, kmers = _mix(
            [self._count(dataset) for dataset in train],
            [
                part.weight / dataset.manifest.bp("train")
                for part, dataset in zip(self.config.data.uri, train, strict=True)
            ],
        )
        majority, model = int(letters.argmax()), markov.Markov(kmers)
        right = [0.0, 0.0]
        for rows in self._batches:
            scored_BL = rows.scored_BL.cpu().numpy()
            truth_n = rows.codes_BL.cpu().numpy()[scored_BL]
            right[0] += float((truth_n == majority).sum())
            right[1] += float((truth_n == model.predict(rows.context_BL8[scored_BL])).sum())
        hits = self._sum(right)
        names = ("val/mlm_accuracy_majority", "val/mlm_accuracy_markov")
        accuracies = {name: hit / self.scored for name, hit in zip(names, hits, strict=True)}
        return accuracies | {"val/scored_positions": float(self.scored)}

    def standard_error(self, accuracy: float) -> float:
        """Of an accuracy over the scored positions, taken as independent."""
        return math.sqrt(max(accuracy * (1 - accuracy), 1e-12) / self.scored)

    @torch.no_grad()
    def masked(self, network: Network, prefix: str = "val/") -> dict[str, float]:
        """``mlm_loss`` and ``mlm_accuracy`` of ``network`` over the scored positions of all ranks'
        windows."""
        was_training = network.training
        network.eval()
        loss = right = 0.0
        for rows in self._batches:
            logits_NV = network(rows.visible_BL, length_B=rows.length_B).logits_BLV[rows.scored_BL]
            truth_N = rows.codes_BL[rows.scored_BL].long()
            loss += float(torch.nn.functional.cross_entropy(logits_NV, truth_N, reduction="sum"))
            right += float((logits_NV.argmax(-1) == truth_N).sum())
            heart.advance()
        network.train(was_training)
        total_loss, total_right = self._sum([loss, right])
        return {
            f"{prefix}mlm_loss": total_loss / self.scored,
            f"{prefix}mlm_accuracy": total_right / self.scored,
        }

    @torch.no_grad()
    def health(self, teacher: Network, by_row: Callable[[Outputs], Mapping[str, Tensor]]) -> dict[str, float]:
        """Health of the teacher's embeddings of two views of the first (at most 256) windows.

        ``by_row``: further metrics of the teacher's outputs, [B] each, whose means over all rows are taken.
        """
        firsts: list[Tensor] = []
        seconds: list[Tensor] = []
        more: defaultdict[str, list[Tensor]] = defaultdict(list)
        size, ranks = self.config.val.batch, self.group.size
        for number, rows in enumerate(self._batches[: -(-HEALTH_WINDOWS // (size * ranks))]):
            # Row i of this batch is window (number * size + i) * ranks + rank of all.
            wanted = -(-(HEALTH_WINDOWS - self.group.rank) // ranks) - number * size
            counted = slice(max(0, min(rows.real, wanted)))
            pair = make_view_pairs(rows.windows, self.config.views)[0]
            heart.advance()
            for view, into in ((pair.student, firsts), (pair.teacher, seconds)):
                outputs = teacher(view.codes_BL, length_B=lengths(view), nucleotides=False)
                into.append(torch.nn.functional.normalize(outputs.embedding[counted], dim=-1))
                for name, value_B in by_row(outputs).items():
                    more[name].append(value_B[counted, None])
        empty = torch.zeros(0, teacher.embedding_size, device=self.device)
        first, second = (
            collectives.gather_rows(self.group, torch.cat([empty, *part])) for part in (firsts, seconds)
        )
        values = {
            "health/embedding_std": representation_metrics.embedding_std(first),
            "health/effective_rank": representation_metrics.effective_rank(first),
            "health/alignment": representation_metrics.alignment(first, second),
            "health/uniformity": representation_metrics.uniformity(first),
        }
        means = {
            name: collectives.gather_rows(self.group, torch.cat(parts)).mean() for name, parts in more.items()
        }
        return values | {name: float(mean) for name, mean in means.items()}

    def _count(self, dataset: Dataset) -> tuple[Counts, Counts]:
        """Letters and k-mers of the whole dataset, the same on every rank."""
        mine = markov.count_letters_and_contexts(self._readable(dataset))
        letters, kmers = (
            collectives.sum_over_ranks(self.group, torch.from_numpy(c).to(self.device)).cpu().numpy()
            for c in mine
        )
        return letters, kmers

    def _readable(self, dataset: Dataset) -> Iterator[alphabet.Codes]:
        """This rank's share of the blocks, one at a time."""
        for block in range(self.group.rank, len(dataset.blocks), self.group.size):
            try:
                yield dataset.codes(block)
            except (StoreError, FormatError):
                if self.config.data.on_corrupt == "fail":
                    raise
                # With "skip" it is not counted here; the reader names it when it comes to it.

    def _rows(
        self, datasets: Mapping[int, Dataset], places: list[Place], flank: int, *, spare: Place
    ) -> _Rows:
        """The windows of ``places``; of none, ``spare`` without a scored position."""
        real, length = len(places), self.config.data.last_length
        places = places or [spare]
        rows, near = (WindowBuilder(len(places), length, reach) for reach in (flank, markov.REACH))
        for row, (number, block, start, end) in enumerate(places):
            packed = datasets[number].block(block)
            rows.fill(row, packed, start, end, locus=datasets[number].locus(block))
            near.fill(row, packed, start, end, locus=datasets[number].locus(block))
        number_B, block_B, start_B, end_B = torch.tensor(places).T
        key_B = random.fold(_MASK_SEED, block_B, start_B)
        key_B = torch.where(number_B == 0, key_B, random.fold(key_B, number_B))
        windows = rows.windows(key_B)
        around_BM, length_B = near.codes, end_B - start_B
        codes_BL = torch.from_numpy(around_BM[:, markov.REACH : -markov.REACH].copy())
        codes_BL[torch.arange(length) >= length_B[:, None]] = alphabet.PAD
        draws_BL = random.words(key_B, "validation mask", length)
        scored_BL = (codes_BL < alphabet.BASES) & random.below(draws_BL, 0, self.config.views.masking.rate)
        scored_BL[real:] = False
        visible_BL = torch.where(scored_BL, alphabet.MASK, codes_BL)
        around_BM[:, markov.REACH : -markov.REACH][scored_BL.numpy()] = alphabet.MASK
        context_BL8 = np.stack([markov.contexts(row) for row in around_BM])
        ragged = bool((length_B != length).any())
        device = self.device
        return _Rows(
            real,
            windows.to(device),
            codes_BL.to(device),
            visible_BL.to(device),
            scored_BL.to(device),
            length_B.to(device) if ragged else None,
            context_BL8,
        )

    def _sum(self, values: list[float]) -> list[float]:
        total: list[float] = collectives.sum_over_ranks(
            self.group, torch.tensor(values, dtype=torch.float64, device=self.device)
        ).tolist()
        return total


def _places(config: TrainConfig, datasets: Mapping[int, Dataset]) -> list[Place]:
    """The windows of all datasets, interleaved, so that any first part of them mirrors the mixture too."""
    weights = [config.data.uri[number].weight for number in datasets]
    found: list[tuple[float, Place]] = []
    for (number, dataset), windows in zip(
        datasets.items(), share_out(config.val.windows, weights), strict=True
    ):
        chosen = choose_windows(
            [block.bp for _, block in dataset.blocks], config.data.last_length, windows, margin=markov.REACH
        )
        found += [((i + 0.5) / len(chosen), (number, *place)) for i, place in enumerate(chosen)]
    return [place for _, place in sorted(found)]


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` things by weight, at least one to each: whole numbers by largest remainder."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return [max(1, share) for share in shares]


def _mix(counts: Sequence[tuple[Counts, Counts]], weights: Sequence[float]) -> tuple[Counts, Counts]:
    """Letters and k-mers, summed over datasets by weight; of a single dataset as they are."""
    if len(counts) == 1:
        return counts[0]
    whole = sum(weight * float(kmers.sum()) for (_, kmers), weight in zip(counts, weights, strict=True))
    scale = _COUNTS / (whole or 1.0)

    def mixed(kind: int) -> Counts:
        scaled = [
            np.rint(both[kind] * (weight * scale)) for both, weight in zip(counts, weights, strict=True)
        ]
        return np.sum(scaled, 0).astype(np.int64)

    return mixed(0), mixed(1)
