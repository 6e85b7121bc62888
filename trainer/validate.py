"""Held-out evaluation on a fixed set of windows: every scored position is hidden, so that copying scores nothing."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep import alphabet
from trainer import baselines, collectives, counter, health
from trainer.collectives import Group
from trainer.config import TrainConfig
from trainer.data import Dataset, choose_windows, cut_window, stack_windows
from trainer.distill import lengths, make_pairs
from trainer.heads import Network
from trainer.losses import teacher_probabilities
from trainer.views import Windows

_MASK_SEED = 20260101  # the same hidden positions in every run, so that runs compare
HEALTH_WINDOWS = 256


@dataclass(frozen=True)
class _Rows:
    windows: Windows
    codes_BL: Tensor  # the letters
    visible_BL: Tensor  # the letters, MASK where scored
    scored_BL: Tensor
    length_B: Tensor | None
    context_BL8: np.ndarray[Any, Any]


class Validator:
    """Windows of the val split, this rank's share of them, and the baselines on the same positions."""

    def __init__(self, config: TrainConfig, *, flank: int, device: torch.device, group: Group) -> None:
        self.config, self.group, self.device = config, group, device
        dataset = Dataset(config.data.uri, "val")
        places = choose_windows([b.bp for _, b in dataset.blocks], config.data.length, config.val.windows,
                                margin=baselines.REACH)  # fmt: skip
        mine = places[group.rank :: group.size]
        size = config.val.batch
        self._batches = [self._rows(dataset, mine[i : i + size], flank) for i in range(0, len(mine), size)]
        self.scored = int(self._sum([sum(float(rows.scored_BL.sum()) for rows in self._batches)])[0])
        if not self.scored:
            raise ValueError(f"the val split of {config.data.uri} has no letter A, C, G or T to score")

    def baselines(self, train: Dataset) -> dict[str, float]:
        """``val/mlm_accuracy_majority|markov``, ``val/scored_positions``; each rank counts its share of the blocks."""
        blocks = range(self.group.rank, len(train.blocks), self.group.size)
        counts = baselines.count_letters_and_contexts(train.codes(block) for block in blocks)
        letters, kmers = (
            collectives.sum_over_ranks(self.group, torch.from_numpy(c).to(self.device)).cpu().numpy() for c in counts
        )
        majority, markov = int(letters.argmax()), baselines.Markov(kmers)
        right = [0.0, 0.0]
        for rows in self._batches:
            scored_BL = rows.scored_BL.cpu().numpy()
            truth_n = rows.codes_BL.cpu().numpy()[scored_BL]
            right[0] += float((truth_n == majority).sum())
            right[1] += float((truth_n == markov.predict(rows.context_BL8[scored_BL])).sum())
        hits = self._sum(right)
        names = ("val/mlm_accuracy_majority", "val/mlm_accuracy_markov")
        accuracies = {name: hit / self.scored for name, hit in zip(names, hits, strict=True)}
        return accuracies | {"val/scored_positions": float(self.scored)}

    def standard_error(self, accuracy: float) -> float:
        """Of an accuracy over the scored positions, taken as independent."""
        return math.sqrt(max(accuracy * (1 - accuracy), 1e-12) / self.scored)

    @torch.no_grad()
    def masked(self, network: Network, prefix: str = "val/") -> dict[str, float]:
        """``mlm_loss`` and ``mlm_accuracy`` of ``network`` over the scored positions of all ranks' windows."""
        was_training = network.training
        network.eval()
        loss = right = 0.0
        for rows in self._batches:
            logits_NV = network(rows.visible_BL, length_B=rows.length_B).logits_BLV[rows.scored_BL]
            truth_N = rows.codes_BL[rows.scored_BL].long()
            loss += float(torch.nn.functional.cross_entropy(logits_NV, truth_N, reduction="sum"))
            right += float((logits_NV.argmax(-1) == truth_N).sum())
        network.train(was_training)
        total_loss, total_right = self._sum([loss, right])
        return {f"{prefix}mlm_loss": total_loss / self.scored, f"{prefix}mlm_accuracy": total_right / self.scored}

    @torch.no_grad()
    def health(self, teacher: Network, centre_K: Tensor | None) -> dict[str, float]:
        """Health of the teacher's embeddings of two views of (at most 256 of) the windows."""
        firsts: list[Tensor] = []
        seconds: list[Tensor] = []
        entropies: list[Tensor] = []
        for rows in self._batches[: -(-HEALTH_WINDOWS // (self.config.val.batch * self.group.size))]:
            pair = make_pairs(rows.windows, self.config.views)[0]
            for view, into in ((pair.student, firsts), (pair.teacher, seconds)):
                outputs = teacher(view.codes_BL, length_B=lengths(view), nucleotides=False)
                into.append(torch.nn.functional.normalize(outputs.embedding, dim=-1))
                if outputs.prototypes_BPK is not None:
                    temperature = self.config.loss.distill.teacher_temperature
                    probability_BPK = teacher_probabilities(outputs.prototypes_BPK, centre_K, temperature)
                    entropies.append(health.entropy(probability_BPK).mean(1, keepdim=True))
        empty = torch.zeros(0, teacher.embedding_size, device=self.device)
        first, second = (collectives.gather_rows(self.group, torch.cat([empty, *part])) for part in (firsts, seconds))
        values = {
            "health/embedding_std": health.embedding_std(first),
            "health/effective_rank": health.effective_rank(first),
            "health/alignment": health.alignment(first, second),
            "health/uniformity": health.uniformity(first),
        }
        if "distill" in teacher.heads:
            none = torch.zeros(0, 1, device=self.device)
            rows_M1 = collectives.gather_rows(self.group, torch.cat([none, *entropies]))
            values["health/teacher_entropy"] = float(rows_M1.mean())
        return values

    def _rows(self, dataset: Dataset, places: list[tuple[int, int, int]], flank: int) -> _Rows:
        length = self.config.data.length
        cut = [cut_window(dataset.codes(block), start, end, length, flank) for block, start, end in places]
        key_B = counter.fold(_MASK_SEED, *torch.tensor(places)[:, :2].T)
        windows = stack_windows(cut, key_B, flank)
        near = [cut_window(dataset.codes(block), start, end, length, baselines.REACH) for block, start, end in places]
        around_BM = np.stack([row for row, _, _ in near])
        length_B = torch.tensor([end - start for _, start, end in places])
        codes_BL = torch.from_numpy(around_BM[:, baselines.REACH : -baselines.REACH].copy())
        codes_BL[torch.arange(length) >= length_B[:, None]] = alphabet.PAD
        draws_BL = counter.words(key_B, "validation mask", length)
        scored_BL = (codes_BL < alphabet.BASES) & counter.below(draws_BL, 0, self.config.views.masking.rate)
        visible_BL = torch.where(scored_BL, alphabet.MASK, codes_BL)
        around_BM[:, baselines.REACH : -baselines.REACH][scored_BL.numpy()] = alphabet.MASK
        context_BL8 = np.stack([baselines.contexts(row) for row in around_BM])
        ragged = bool((length_B != length).any())
        device = self.device
        return _Rows(windows.to(device), codes_BL.to(device), visible_BL.to(device), scored_BL.to(device),
                     length_B.to(device) if ragged else None, context_BL8)  # fmt: skip

    def _sum(self, values: list[float]) -> list[float]:
        total: list[float] = collectives.sum_over_ranks(
            self.group, torch.tensor(values, dtype=torch.float64, device=self.device)
        ).tolist()
        return total
