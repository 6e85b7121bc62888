"""What a linear model reads of a frozen encoder: one vector for each sequence, of one of several kinds.

``mean_max``: the mean and the maximum over the letters of the last hidden states. ``layers``: the same of the
hidden activations inside the layers, one after the other. Both are averaged over the strands that are read.
``bins``: the means of equal parts of the row, from its start to its end, of the last hidden states; each
strand by itself, side by side, the reverse one turned so that its bins stand as those of the forward one.

Shapes: N sequences, B of a batch, L letters, D hidden, J bins, F features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from configs import Section
from trainer.evaluation.tasks.fitting.pooling import bin_means
from trainer.inference.batching import PaddedBatch
from trainer.inference.embedding import Strand, letters_of, mean_and_max, read_strands
from trainer.inference.precision import Resolved, computing_in, device_of
from trainer.inference.sequences import EncodedSequences
from trainer.models.backbone import Backbone
from trainer.models.network import Network

ProbePooling = Literal["mean_max", "layers", "bins"]
FEATURES = 4096  # of one pooling at most: fewer layers or bins are read of a larger network
BINS = 32  # of the strands together


class ProbeFeatures(Section):
    """What one linear model reads; it stands in a kept model. The default is what was before there was a
    choice.

    ``layers``: the numbers, from 0, of those whose activations are read. ``bins``: how many of each strand.
    """

    pooling: ProbePooling = "mean_max"
    layers: tuple[int, ...] = ()
    bins: int = 0

    @classmethod
    def of(cls, pooling: ProbePooling, backbone: Backbone, *, strand: Strand) -> "ProbeFeatures":
        """What ``pooling`` reads of a backbone; ``layers`` of one that names no activations is
        ``mean_max``."""
        if pooling == "layers":
            layers = _spread([module.in_features for module in backbone.activation_modules()])
            return cls(pooling=pooling, layers=layers) if layers else cls()
        if pooling == "bins":
            together = min(BINS, FEATURES // backbone.hidden_size)
            return cls(pooling=pooling, bins=max(1, together // _strands(strand)))
        return cls(pooling=pooling)

    def size(self, backbone: Backbone, *, strand: Strand) -> int:
        """F. ValueError if the backbone has no such layers."""
        if self.pooling == "layers":
            modules = backbone.activation_modules()
            if not self.layers or not set(self.layers) <= set(range(len(modules))):
                raise ValueError(f"it reads layers {list(self.layers)} of an encoder that has {len(modules)}")
            return 2 * sum(modules[number].in_features for number in self.layers)
        if self.pooling == "bins":
            return self.bins * _strands(strand) * backbone.hidden_size
        return 2 * backbone.hidden_size


def features_of(
    poolings: Sequence[ProbePooling], backbone: Backbone, *, strand: Strand
) -> tuple[ProbeFeatures, ...]:
    """What ``poolings`` read of a backbone, each once."""
    return tuple(dict.fromkeys(ProbeFeatures.of(pooling, backbone, strand=strand) for pooling in poolings))


def probe_features(
    network: Network,
    sequences: EncodedSequences | Sequence[str],
    wanted: Sequence[ProbeFeatures],
    *,
    precision: Resolved = "fp32",
    strand: Strand = "both",
) -> list[Tensor]:
    """fp32 [N, F] on the CPU for each of ``wanted``, all from one reading of each sequence, computed where
    ``network`` is. Padding does not count.

    Raises:
        ValueError: a string is no sequence, or the network has no such layers. MemoryError: a sequence is too
            long for the device.
    """
    if not isinstance(sequences, EncodedSequences):
        sequences = EncodedSequences.from_strings(sequences)
    device, backbone = device_of(network), network.backbone
    sizes = [each.size(backbone, strand=strand) for each in wanted]
    modules = backbone.activation_modules()
    layers = sorted({number for each in wanted for number in each.layers})

    def read(batches: Sequence[PaddedBatch]) -> Tensor:
        """[B, sum of F]"""
        of_strands = []
        for reverse, batch in enumerate(batches):
            pooling = _pooled_inputs({number: modules[number] for number in layers}, batch)
            with pooling as pooled, computing_in(precision, device):
                letters_BLD = letters_of(network, *batch)
            one = _OneStrand(letters_BLD.float(), batch.length_B, pooled, reversed=reverse == 1)
            of_strands.append([one.features(each) for each in wanted])
        parts = [
            torch.cat(read, 1) if each.pooling == "bins" else sum(read[1:], start=read[0]) / len(read)
            for each, read in zip(wanted, zip(*of_strands, strict=True), strict=True)
        ]
        return torch.cat(parts, 1)

    return list(read_strands(sequences, read, device=device, strand=strand).split(sizes, 1))


class _OneStrand(NamedTuple):
    """One strand of a batch. ``pooled``: the mean and maximum of the activations of layers, by number."""

    letters_BLD: Tensor
    length_B: Tensor | None
    pooled: Mapping[int, Tensor]
    reversed: bool

    def features(self, wanted: ProbeFeatures) -> Tensor:
        """fp32 [B, F of one strand]"""
        if wanted.pooling == "layers":
            return torch.cat([self.pooled[number] for number in wanted.layers], 1)
        if wanted.pooling == "bins":
            binned_BJD = bin_means(self.letters_BLD, self.length_B, bins=wanted.bins)
            return (binned_BJD.flip(1) if self.reversed else binned_BJD).flatten(1)
        return mean_and_max(self.letters_BLD, self.length_B)


@contextmanager
def _pooled_inputs(modules: Mapping[int, nn.Module], batch: PaddedBatch) -> Iterator[Mapping[int, Tensor]]:
    """What ``modules`` read of the letters in a forward of ``batch``, pooled at once: so no activation
    outlives its layer."""
    pooled: dict[int, Tensor] = {}
    letters = batch.codes_BL.shape[1]

    def hook(number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def pool(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            pooled[number] = mean_and_max(inputs[0][:, -letters:].float(), batch.length_B)

        return pool

    handles = [module.register_forward_pre_hook(hook(number)) for number, module in modules.items()]
    try:
        yield pooled
    finally:
        for handle in handles:
            handle.remove()


def _strands(strand: Strand) -> int:
    return 2 if strand == "both" else 1


def _spread(widths: Sequence[int]) -> tuple[int, ...]:
    """The numbers of as many layers as FEATURES allows, at least one: equally far apart, with the last."""
    if not widths:
        return ()
    count = min(len(widths), max(1, FEATURES // (2 * max(widths))))
    return tuple((i + 1) * len(widths) // count - 1 for i in range(count))
