"""The rows of tasks over the ranks: each embeds a part of the batches, and all get the vectors.

Shapes: N rows of a task, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.process.heartbeat import heartbeat
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.evaluation.online.messages import TaskRows
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures, features_of, probe_features
from trainer.inference import batching
from trainer.inference.precision import device_of
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network


@dataclass(frozen=True)
class Slice:
    """This rank's part of the sequences of a task, as batches.

    The batches are the same ones on any number of ranks, so that the vectors are, too. Each rank has equally
    many, because under ZeRO-3 each forward gathers the weights from all ranks: the last ones may not count.

    Attributes:
        real: how many batches count.
        order_N: the place in the task of each row that the ranks give, one rank after the other.
        lengths: the letters of every sequence of the task.
    """

    batches: tuple[EncodedSequences, ...]
    real: int
    order_N: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: EncodedSequences, group: Group, *, device: torch.device) -> "Slice":
        """The tiles of ``sequences`` on ``device`` go to the ranks in turn. Each is one forward, and every
        rank has equally many: under ZeRO-3 they gather weights together."""
        places = list(batching.tiles(sequences.length_N, device=device))
        by_rank = [places[rank :: group.size] for rank in range(group.size)]
        own = by_rank[group.rank]
        filled = own + places[:1] * (len(by_rank[0]) - len(own))
        order_N = torch.cat([index_B for of_rank in by_rank for index_B in of_rank])
        lengths = tuple(sequences.length_N.tolist())
        return cls(tuple(sequences.rows(index_B) for index_B in filled), len(own), order_N, lengths)


@dataclass(frozen=True)
class SharedTask:
    """A task on all ranks, and this one's part of it."""

    rows: TaskRows
    slice: Slice

    @property
    def name(self) -> str:
        return self.rows.name


def share_tasks(
    read: Callable[[], Sequence[TaskRows]], group: Group, *, device: torch.device
) -> list[SharedTask]:
    """The tasks that the first rank reads with ``read``; a collective.

    Raises:
        ConfigError, EverywhereError: on all ranks, where ``read`` raises a ConfigError, or a RuntimeError.
    """
    tasks: Sequence[TaskRows] = []
    with (
        heartbeat.inside("reading tasks", phase=True),
        collectives.first_rank_decides(group, ValueError, RuntimeError),
    ):
        if group.rank == 0:
            tasks = read()
    everywhere = collectives.object_from_first(group, list(tasks))
    return [SharedTask(rows, Slice.of(rows.sequences, group, device=device)) for rows in everywhere]


@torch.no_grad()
def embed_together(network: Network, shared: SharedTask, *, group: Group) -> dict[ProbeFeatures, Tensor]:
    """fp32 [N, F] on the CPU of every rank, of each kind of features that mode ``probe`` may read; a
    collective.

    In the precision of the weights of ``network``, which is the run's.
    """
    part, was_training = shared.slice, network.training
    strand = shared.rows.strand
    wanted = features_of(shared.rows.pooling, network.backbone, strand=strand)
    network.eval()
    vectors = []
    for batch in part.batches:
        vectors.append(torch.cat(probe_features(network, batch, wanted, strand=strand), 1))
        heartbeat.advance()
    network.train(was_training)
    own = torch.cat([vectors[0][:0], *vectors[: part.real]])
    gathered = collectives.gather_rows(group, own.to(device_of(network))).cpu()
    in_order_NF = torch.empty_like(gathered)
    in_order_NF[part.order_N] = gathered
    sizes = [each.size(network.backbone, strand=strand) for each in wanted]
    return dict(zip(wanted, in_order_NF.split(sizes, 1), strict=True))
