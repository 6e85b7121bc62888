"""Validation on held-out windows: every scored position is hidden, so that copying scores nothing.

Shapes: B windows of a batch, L letters, V nucleotides, N scored positions, M windows, E embedding.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cluster.process.heartbeat import heartbeat
from cluster.storage.store import StoreError
from data_prep import alphabet
from data_prep.shards import FormatError
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.data.config import Data
from trainer.data.dataset import Dataset, open_datasets
from trainer.distill import representation_metrics
from trainer.evaluation import markov
from trainer.evaluation.config import Validation
from trainer.evaluation.held_out_windows import digest_of_all, rank_batches
from trainer.evaluation.markov import Counts
from trainer.models.network import Network, Outputs
from trainer.views.config import Views
from trainer.views.view_batch import lengths, make_view_pairs

HEALTH_WINDOWS = 256
RowReadings = Callable[[Outputs], Mapping[str, Tensor]]  # a network's outputs -> metric: [B], one a row


class Validator:
    """This rank's part of the held-out windows, and what networks and baselines score on them.

    Of a mixture, each dataset gives windows by its weight; ``left_out`` are the URIs of those without a val
    split. Windows have the length that the run ends with. A damaged block in a val split is an error whatever
    data.on_corrupt says, so that all runs are measured on the same windows. ``windows_sha256`` is of these
    and of the letters that are hidden in them: where it is equal, accuracies compare.

    Every rank has as many batches as the others, because under ZeRO-3 each forward gathers the weights from
    all ranks: a rank without windows for a batch calls the network with one that does not count.
    """

    def __init__(
        self,
        data: Data,
        val: Validation,
        views: Views,
        *,
        device: torch.device,
        group: Group,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """``digests``: of the manifests that are wanted, as in open_datasets."""
        self._data, self._views, self._batch_size = data, views, val.batch
        self.device, self.group = device, group
        with collectives.together(group):
            datasets = open_datasets(data, "val", some_empty=True, digests=digests)
            self.left_out = [part.uri for number, part in enumerate(data.uri) if number not in datasets]
            batches = rank_batches(datasets, data=data, val=val, views=views, group=group)
            self._batches = [batch.to(device) for batch in batches]
        self.scored = int(self._sum([sum(float(batch.scored_BL.sum()) for batch in self._batches)])[0])
        with collectives.together(group):
            if not self.scored:
                uris = ", ".join(dataset.uri for dataset in datasets.values())
                raise ValueError(f"the val split of {uris} has no letter A, C, G or T to score")
        own = [digest for batch in self._batches for digest in batch.digests()]
        self.windows_sha256 = digest_of_all(
            part for ranks in collectives.gather_objects(group, own) for part in ranks
        )

    def baselines(self, train: Sequence[Dataset]) -> dict[str, float]:
        """``val/mlm_accuracy_majority|markov`` and ``val/scored_positions``.

        ``train``: the training splits of data.uri, in its order. Each rank counts a part of their blocks.
        Counts of several datasets are mixed by weight / bp, as samples are.
        """
        weights = [
            part.weight / dataset.manifest.bp("train")
            for part, dataset in zip(self._data.uri, train, strict=True)
        ]
        letters, kmers = markov.mix_counts([self._count(dataset) for dataset in train], weights)
        majority, model = int(letters.argmax()), markov.Markov(kmers)
        right = [0.0, 0.0]
        for batch in self._batches:
            scored_BL = batch.scored_BL.cpu().numpy()
            truth_N = batch.codes_BL.cpu().numpy()[scored_BL]
            right[0] += float((truth_N == majority).sum())
            right[1] += float((truth_N == model.predict(batch.context_BL8[scored_BL])).sum())
        by_majority, by_markov = self._sum(right)
        return {
            "val/mlm_accuracy_majority": by_majority / self.scored,
            "val/mlm_accuracy_markov": by_markov / self.scored,
            "val/scored_positions": float(self.scored),
        }

    @torch.no_grad()
    def masked(self, network: Network, prefix: str = "val/") -> dict[str, float]:
        """``mlm_loss`` and ``mlm_accuracy`` of ``network`` over the scored positions of all ranks."""
        was_training = network.training
        network.eval()
        loss = right = 0.0
        for batch in self._batches:
            logits_NV = network(batch.visible_BL, length_B=batch.length_B).logits_BLV[batch.scored_BL]
            truth_N = batch.codes_BL[batch.scored_BL].long()
            loss += float(functional.cross_entropy(logits_NV, truth_N, reduction="sum"))
            right += float((logits_NV.argmax(-1) == truth_N).sum())
            heartbeat.advance()
        network.train(was_training)
        total_loss, total_right = self._sum([loss, right])
        return {
            f"{prefix}mlm_loss": total_loss / self.scored,
            f"{prefix}mlm_accuracy": total_right / self.scored,
        }

    @torch.no_grad()
    def health(self, teacher: Network, by_row: RowReadings) -> dict[str, float]:
        """``health/…`` of the teacher's embeddings of two views of the first (at most 256) windows.

        ``by_row``: more metrics, each the mean over the rows of both views.
        """
        firsts: list[Tensor] = []
        seconds: list[Tensor] = []
        more: defaultdict[str, list[Tensor]] = defaultdict(list)
        for batch_number, counted in self._health_rows():
            pair = make_view_pairs(self._batches[batch_number].windows, self._views)[0]
            heartbeat.advance()
            for view, embeddings in ((pair.student, firsts), (pair.teacher, seconds)):
                outputs = teacher(view.codes_BL, length_B=lengths(view), nucleotides=False)
                embeddings.append(functional.normalize(outputs.embedding[counted], dim=-1))
                for name, value_B in by_row(outputs).items():
                    more[name].append(value_B[counted, None])
        first_ME, second_ME = (self._gather(part, teacher.embedding_size) for part in (firsts, seconds))
        values = {
            "health/embedding_std": representation_metrics.embedding_std(first_ME),
            "health/effective_rank": representation_metrics.effective_rank(first_ME),
            "health/alignment": representation_metrics.alignment(first_ME, second_ME),
            "health/uniformity": representation_metrics.uniformity(first_ME),
        }
        return values | {name: float(self._gather(parts, 1).mean()) for name, parts in more.items()}

    def _health_rows(self) -> Iterator[tuple[int, slice]]:
        """(number of a batch, its rows that are among the first HEALTH_WINDOWS windows of all ranks)."""
        size, ranks = self._batch_size, self.group.size
        for number, batch in enumerate(self._batches[: -(-HEALTH_WINDOWS // (size * ranks))]):
            # Row i of this batch is window (number * size + i) * ranks + rank of all.
            wanted = -(-(HEALTH_WINDOWS - self.group.rank) // ranks) - number * size
            yield number, slice(max(0, min(batch.real, wanted)))

    def _count(self, dataset: Dataset) -> tuple[Counts, Counts]:
        """Letters and k-mers of the whole dataset, the same on every rank."""
        counts = markov.count_letters_and_contexts(self._readable_blocks(dataset))
        letters, kmers = (
            collectives.sum_over_ranks(self.group, torch.from_numpy(part).to(self.device)).cpu().numpy()
            for part in counts
        )
        return letters, kmers

    def _readable_blocks(self, dataset: Dataset) -> Iterator[alphabet.Codes]:
        """This rank's part of the blocks, one at a time."""
        for block in range(self.group.rank, len(dataset.blocks), self.group.size):
            try:
                yield dataset.codes(block)
            except (StoreError, FormatError):
                if self._data.on_corrupt == "fail":
                    raise
                # With "skip" it is not counted here; the loader reports it when training comes to it.

    def _gather(self, parts: Sequence[Tensor], width: int) -> Tensor:
        """[M, width]: the rows of all ranks; this rank's may be none."""
        none = torch.zeros(0, width, device=self.device)
        return collectives.gather_rows(self.group, torch.cat([none, *parts]))

    def _sum(self, values: Sequence[float]) -> list[float]:
        total: list[float] = collectives.sum_over_ranks(
            self.group, torch.tensor(values, dtype=torch.float64, device=self.device)
        ).tolist()
        return total
