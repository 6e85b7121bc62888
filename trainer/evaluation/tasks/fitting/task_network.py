"""A network with a head for a task.

Shapes: N rows, B of a batch, L letters, D hidden, F pooled features, K outputs.
"""

import torch
from torch import Tensor, nn

from trainer.evaluation.tasks.fitting.pooling import POOLINGS
from trainer.evaluation.tasks.fitting.recipe import HeadConfig
from trainer.inference.embedding import Strand, letters_of, mean_over_strands
from trainer.inference.precision import Resolved, computing_in, device_of
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network


class Head(nn.Module):
    """A linear map of the pooled letters: pooled [B, F] -> fp32 [B, K].

    The pooled features of two sequences differ by a few hundredths of their size, and training moves what
    they have in common. So the map reads them standardised: ``batch`` in training by the batch, in prediction
    by fixed running statistics; ``layer`` each row by itself.
    """

    def __init__(
        self,
        config: HeadConfig,
        *,
        hidden_size: int,
        outputs: int,
        generator: torch.Generator,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.pooling = POOLINGS[config.pooling](hidden_size, generator)
        features = self.pooling.features
        self.standardise = (
            nn.BatchNorm1d(features, affine=False) if config.norm == "batch" else nn.LayerNorm(features)
        )
        self.head = nn.Linear(features, outputs)
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        self._generator, self._dropout = generator, dropout

    def output(self, pooled_BF: Tensor) -> Tensor:
        """In training ``pooled_BF`` is a whole batch, because its statistics may be used."""
        features_BF = self.standardise(pooled_BF)
        if self.training and self._dropout:
            kept = 1 - self._dropout  # drawn on the CPU: the same on every device
            mask_BF = torch.empty(features_BF.shape).bernoulli_(kept, generator=self._generator)
            features_BF = features_BF * (mask_BF / kept).to(features_BF.device)
        output_BK: Tensor = self.head(features_BF)
        return output_BK.float()


class TaskNetwork(nn.Module):
    """A network and one head: codes [B, L] -> fp32 [B, K]."""

    def __init__(self, network: Network, head: Head, *, strand: Strand) -> None:
        super().__init__()
        self.network, self.head, self.strand = network, head, strand

    def forward(self, codes_BL: Tensor, length_B: Tensor | None) -> Tensor:
        letters_BLD = letters_of(self.network, codes_BL, length_B)
        return self.head.output(self.head.pooling(letters_BLD, length_B))

    def read(self, sequences: EncodedSequences, *, precision: Resolved) -> Tensor:
        """fp32 [N, K] on the CPU, in eval mode: what the given strand of each sequence gives, or the mean of
        both."""
        self.eval()
        device = device_of(self)
        with computing_in(precision, device):
            return mean_over_strands(sequences, self, device=device, strand=self.strand)
