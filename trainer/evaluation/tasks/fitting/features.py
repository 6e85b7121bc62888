"""What the modes read of the rows of a task.

Shapes: N rows, F features.
"""

from collections.abc import Callable, Mapping
from typing import Any

from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.linear import kmer_counts, onehot_letters
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures, features_of, probe_features
from trainer.evaluation.tasks.fitting.variant_effects import VariantEffects, variant_effects
from trainer.evaluation.tasks.rows.data import Split
from trainer.inference.precision import Resolved
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network


class Features:
    """What modes read of a split; computed once for all modes and seeds.

    ``of_encoder``: what the probe may read.
    """

    def __init__(self, network: Network, task: TaskConfig, *, positions: int, precision: Resolved) -> None:
        self._network, self._k, self._positions = network, task.kmer.k, positions
        self._precision, self._strand, self._window = precision, task.strand, task.variant.length
        self.of_encoder = features_of(task.probe.pooling, network.backbone, strand=task.strand)
        self._computed: dict[tuple[str, Split], Any] = {}

    def sequences(self, split: Split) -> EncodedSequences:
        return self._once("sequences", split, lambda: EncodedSequences.from_codes(split.codes()))

    def kmers(self, split: Split) -> Any:
        """Sparse float64 [N, 4ᵏ]."""
        return self._once("kmers", split, lambda: kmer_counts(split.letters, k=self._k))

    def onehot(self, split: Split) -> Any:
        """Sparse float64 [N, 4·positions]."""
        return self._once("onehot", split, lambda: onehot_letters(split.letters, length=self._positions))

    def probe(self, split: Split) -> Mapping[ProbeFeatures, Any]:
        """fp32 [N, F] of each that the probe may read of the encoder."""

        def compute() -> Mapping[ProbeFeatures, Any]:
            found = probe_features(
                self._network,
                self.sequences(split),
                self.of_encoder,
                precision=self._precision,
                strand=self._strand,
            )
            return {each: read.numpy() for each, read in zip(self.of_encoder, found, strict=True)}

        return self._once("probe", split, compute)

    def variant_effects(self, split: Split) -> VariantEffects:
        """Of a split of variants."""
        return self._once(
            "variants",
            split,
            lambda: variant_effects(
                self._network,
                split.variants,
                length=self._window,
                precision=self._precision,
                strand=self._strand,
            ),
        )

    def give_probe(self, computed: Mapping[Split, Mapping[ProbeFeatures, Any]]) -> None:
        """Of splits that were read elsewhere, what ``probe`` gives."""
        self._computed |= {("probe", split): found for split, found in computed.items()}

    def _once(self, what: str, split: Split, compute: Callable[[], Any]) -> Any:
        key = (what, split)
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]
