"""Embeddings, predictions and scores of variants by their commands against the bare forward of the letters.

A command's time has all in it: opening the model, reading and checking the input, both strands, pooling, and
writing the output. Bare: the backbone alone, on windows of one length that lie in memory, in batches of 8,192
letters; as often as the command has to read them.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from cluster.process import host
from data_prep import alphabet
from tests.bench.harness import Row, rate
from tests.kept import written
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.modes import compute_unit
from trainer.evaluation.tasks.fitting.prepared import prepare
from trainer.evaluation.tasks.kept.predict_command import PredictRequest, predict_file
from trainer.evaluation.tasks.results.results import Unit
from trainer.evaluation.tasks.rows.data import load
from trainer.inference.embed.command import EmbedRequest, embed_file
from trainer.inference.variants.command import VariantsRequest, score_file
from trainer.models import pretrained
from trainer.models.backbone import BackboneConfig
from trainer.models.chordmixer import ChordMixerConfig
from trainer.models.config import build_backbone
from trainer.models.dilated_conv import DilatedConvConfig
from trainer.models.network import Network

LENGTH = 1000
BARE_ROWS = 8  # of a batch
MODELS: dict[str, tuple[BackboneConfig, int]] = {  # and how many records are read
    "dilated-conv 0.4 M": (DilatedConvConfig(), 240),
    "findna 12.7 M": (ChordMixerConfig(), 16),
}


def rows() -> list[Row]:
    found = []
    torch.set_num_threads(host.threads_per_process(1))
    for name, (config, records) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            found += _Bench(Path(folder), name, config, records).rows()
    torch.set_num_threads(1)
    return found


class _Bench:
    """The files of one model."""

    def __init__(self, folder: Path, name: str, config: BackboneConfig, records: int) -> None:
        torch.manual_seed(0)
        self.folder, self.name, self.records = folder, name, records
        self.network = Network(build_backbone(config), heads={}).eval()
        self.model = str(folder / "model")
        pretrained.write(self.model, self.network, dict(self.network.state_dict()), card="")
        rng = np.random.default_rng(0)
        self.codes = rng.integers(0, 4, (records, LENGTH)).astype(np.uint8)
        self.letters = [alphabet.decode(row).decode() for row in self.codes]
        text = "".join(f">r{number}\n{letters}\n" for number, letters in enumerate(self.letters))
        (folder / "x.fa").write_text(text)

    def rows(self) -> list[Row]:
        return [self._embed(), self._letters(), self._predict(), self._variants()]

    def bare(self, forwards: int) -> None:
        """The backbone alone, ``forwards`` times on all records."""
        with torch.no_grad():
            for _ in range(forwards):
                for start in range(0, self.records, BARE_ROWS):
                    self.network.backbone(torch.from_numpy(self.codes[start : start + BARE_ROWS]))

    def _row(
        self, what: str, command: object, *, forwards: int, amount: float, unit: str, target: str
    ) -> Row:
        assert callable(command)
        ours, bare = rate(amount, command, lambda: self.bare(forwards))
        return Row(
            f"{what}, {self.name}", ours, bare, ours / bare, unit, target, "bare forward, same letters"
        )

    def _embed(self) -> Row:
        request = EmbedRequest(
            self.model, str(self.folder / "x.fa"), str(self.folder / "x.parquet"), length=LENGTH
        )
        kbp = self.records * LENGTH / 1e3
        return self._row(
            "embed", lambda: embed_file(request), forwards=2, amount=kbp, unit="kbp/s", target="≥ 0.8"
        )

    def _letters(self) -> Row:
        request = EmbedRequest(
            self.model,
            str(self.folder / "x.fa"),
            str(self.folder / "x.zarr"),
            length=LENGTH,
            pooling="letters",
            overwrite=True,
        )
        kbp = self.records * LENGTH / 1e3
        return self._row(
            "embed each letter to zarr",
            lambda: embed_file(request),
            forwards=2,
            amount=kbp,
            unit="kbp/s",
            target="≥ 0.5",
        )

    def _predict(self) -> Row:
        values = {}
        for at, role in enumerate(("train", "dev", "test")):
            values[role] = str(self.folder / f"{role}.csv")
            rows = [letters[60 * at : 60 * at + 60] for letters in self.letters]
            lines = [f"{text},{'ab'[number % 2]}" for number, text in enumerate(rows)]
            Path(values[role]).write_text("\n".join(["sequence,label", *lines]) + "\n")
        probe = {"precision": "fp32", "C": [0.1], "pooling": "mean_max"}
        task = TaskConfig.model_validate({"name": "t", "labels": ["a", "b"], "probe": probe, **values})
        prepared = prepare(
            self.network,
            pretrained.read_config(self.model),
            task=task,
            data=load(task),
            device=torch.device("cpu"),
        )
        outcome = compute_unit(prepared, Unit("m", "1", "t", "probe", 0))
        model = written(self.folder / "task_model", outcome.model)
        request = PredictRequest(model, str(self.folder / "x.fa"), str(self.folder / "y.parquet"))
        kbp = self.records * LENGTH / 1e3
        return self._row(
            "predict", lambda: predict_file(request), forwards=2, amount=kbp, unit="kbp/s", target="≥ 0.8"
        )

    def _variants(self) -> Row:
        """A substitution in each record; of each: masked, the reference's window, the alternate's."""
        lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
        middle = LENGTH // 2
        for number, letters in enumerate(self.letters):
            ref = letters[middle]
            alt = "ACGT"[("ACGT".index(ref) + 1) % 4]
            lines.append(f"r{number}\t{middle + 1}\t.\t{ref}\t{alt}\t.\t.\t.")
        (self.folder / "x.vcf").write_text("\n".join(lines) + "\n")
        request = VariantsRequest(
            self.model,
            str(self.folder / "x.fa"),
            str(self.folder / "v.parquet"),
            vcf=str(self.folder / "x.vcf"),
            length=LENGTH,
        )
        return self._row(
            "variants",
            lambda: score_file(request),
            forwards=6,
            amount=self.records,
            unit="variants/s",
            target="≥ 0.8",
        )
