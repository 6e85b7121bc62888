"""One step of self-distillation: a global batch in, gradients and global losses out.

It prepares what losses need, by name (LOSSES), and knows no formula.

The teacher reads first, over all micro-batches and without gradient. Then everything that needs the global
batch (keys, sums for the centre, bottlenecks, ids of places, counts) travels in one packed all-gather. Then
the student goes through its micro-batches, each against all keys; keys need no gradient, so accumulation is
exact. See coupled.py for the losses whose keys do.

Shapes: B rows of a micro-batch, S readings, N places, K prototypes, E embedding; lists run over
micro-batches, then over directions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.process.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.data.locus import Loci
from trainer.data.windows import Windows
from trainer.distill import representation_metrics
from trainer.distill.grad_cache import Cached, Features, coupled_names
from trainer.distill.teacher_targets import Targets
from trainer.engine.ema import ShardedEMA
from trainer.engine.engine import Engine
from trainer.losses import LOSSES, WITHOUT_TEACHER
from trainer.losses.dino import Distilled
from trainer.losses.infonce import Contrast
from trainer.losses.masked_lm import Scored
from trainer.models.network import Network, Outputs
from trainer.run.config import TrainConfig
from trainer.views.view_batch import Shown, lengths, ragged, show

Centres = Mapping[str, Tensor]
"""The moving centre [P, K] of the teacher's cosines at each position, by loss."""
HEALTH_ROWS = 512  # of the global batch that its health is read from: spread and rank cost their square


@dataclass(frozen=True)
class StepResult:
    """What a step found, the same on all ranks.

    ``losses``: name -> mean over the global batch, and "total", their weighted sum. ``centres``: of this
    batch. ``finite``: no loss and no gradient of any rank is infinite or NaN, so that the step may be
    applied. ``stop``: the exit code that some rank was told to stop with, or 0.
    """

    losses: dict[str, float]
    centres: Centres
    finite: bool
    health: dict[str, float]
    stop: int = 0


def train_step(
    engine: Engine,
    teacher: ShardedEMA[Network],
    micro_batches: list[Windows],
    *,
    config: TrainConfig,
    centres: Centres,
    group: Group,
    measure: bool = False,
    told: Callable[[], int] = int,
) -> StepResult:
    """Forward and backward of every micro-batch; the gradient is left in the engine, not applied.

    ``measure`` also takes the health of the batch's first HEALTH_ROWS rows, for which there is one more
    gather. ``told`` gives the exit code to stop with, 0 for none; it is asked once the gradient is there.
    """
    step = _Step(engine, teacher, [show(w, config.views, config.loss) for w in micro_batches], config, group)
    step.gather(centres)
    for m in range(len(micro_batches)):
        step.learn(m, measure=measure)
    losses, finite, stop = step.result(told())
    found = {name: target.centre_PK for name, target in step.targets.items() if target.centre_PK is not None}
    return StepResult(losses, found, finite, step.readings() if measure else {}, stop)


class _Step:
    def __init__(
        self,
        engine: Engine,
        teacher: ShardedEMA[Network],
        shown: list[Shown],
        config: TrainConfig,
        group: Group,
    ) -> None:
        self.engine, self.config, self.group, self.shown = engine, config, group, shown
        self.loss, self.weights = config.loss, config.loss.weights()
        self.coupled = coupled_names(config.loss)
        self.directions = len(shown[0].pairs)
        self.rows_total = config.train.global_batch
        self.taught = _teach(teacher.module, shown, config) if needs_teacher(config) else []
        # With one micro-batch the pass that gives the features is also the one that learns.
        self.live = _learn(engine.forward, shown[0]) if self.coupled and len(shown) == 1 else None
        device = shown[0].pairs[0].student.codes_BL.device
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self.weights}
        self.cached: Cached | None = None
        self.targets: dict[str, Targets] = {}
        self._measured: list[dict[str, Tensor]] = []

    def gather(self, centres: Centres) -> None:
        """The step's one packed all-gather, and what follows from it for all micro-batches."""
        pairs = [pair for shown in self.shown for pair in shown.pairs]
        weights = [
            p.masked.target_BL.sum() if p.weight_BL is None else p.weight_BL[p.masked.target_BL].sum()
            for p in pairs
        ]
        payload = {"letters": torch.stack(weights).double().sum()}
        self.targets = {name: self._targets(name) for name in ("distill", "patch") if name in self.weights}
        for targets in self.targets.values():
            payload |= targets.payload()
        loci_B = None
        if self.shown[0].loci is not None:
            loci_B = Loci(torch.cat([shown.loci.place_N4 for shown in self.shown if shown.loci is not None]))
            payload["loci"] = loci_B.place_N4
        keys = "contrastive" in self.weights and "contrastive" not in self.coupled
        if keys:
            payload |= {
                f"keys {d}": torch.cat([by_direction[d].embedding for by_direction in self.taught])
                for d in range(self.directions)
            }
        features = None
        if self.coupled:
            features = Features(self.coupled, [self.live] if self.live else self._look())
            payload |= features.payload(self.loss)
        everywhere = collectives.gather_packed(self.group, payload)

        self.letters = float(everywhere["letters"].sum())
        for name, targets in self.targets.items():
            targets.receive(everywhere, group=self.group, centre_PK=centres.get(name))
        # Row b of rank r is sample b·W + r of the batch: in that order the keys are the same on any number of
        # ranks.
        self.keys = [
            everywhere[f"keys {d}"].transpose(0, 1).flatten(0, 1) for d in range(self.directions) if keys
        ]
        self.loci_B = loci_B
        self.loci_G = None if loci_B is None else Loci(everywhere["loci"].transpose(0, 1).flatten(0, 1))
        self.patches = self.targets["patch"].total(everywhere) if "patch" in self.targets else 0.0
        if features:
            in_ranks = None if loci_B is None else Loci(everywhere["loci"].flatten(0, 1))
            self.cached = features.losses(
                self.loss,
                everywhere=everywhere,
                taught=self.taught,
                loci_B=loci_B,
                loci_G=in_ranks,
                rows_total=self.rows_total,
                group=self.group,
            )
            for name, share in self.cached.losses.items():
                self.sums[name] += share

    def learn(self, m: int, *, measure: bool) -> None:
        """Forward and backward of micro-batch ``m``."""
        outputs = self.live or _learn(self.engine.forward, self.shown[m])
        before = sum(len(shown.pairs[0].masked.codes_BL) for shown in self.shown[:m])
        rows = slice(before, before + len(outputs[0].pooled_BD))
        loss = torch.zeros((), device=outputs[0].pooled_BD.device)
        for d in range(self.directions):
            inputs = self._inputs(m, d, outputs, rows)
            for name, weight in self.weights.items():
                if name not in self.coupled:
                    share = LOSSES[name].function(inputs[LOSSES[name].needs]())
                    self.sums[name] += share.detach()
                    loss = loss + weight * share
        if self.cached:
            loss = loss + self.cached.attach(outputs, rows, micro_batches=len(self.shown))
        wanted = max(1, HEALTH_ROWS // self.group.size) - rows.start
        if measure and wanted > 0:
            self._measured.append(self._measure(m, outputs, slice(wanted)))
        self.engine.backward(loss)
        if m + 1 < len(self.shown):
            self.engine.end_micro_batch()

    def result(self, told: int) -> tuple[dict[str, float], bool, int]:
        """Global losses, whether all is finite, and the code to stop with: decided together, in one
        all-reduce."""
        mine = torch.stack(list(self.sums.values()))
        broken = ~(mine.isfinite().all() & self.engine.gradient_is_finite())
        stops = torch.tensor([told == EXIT_PREEMPTED, told == EXIT_INTERRUPTED], device=mine.device)
        packed = torch.cat([mine, broken.double()[None], stops.double()])
        *means, broken_ranks, preempted, interrupted = collectives.sum_over_ranks(self.group, packed).tolist()
        stop = EXIT_INTERRUPTED if interrupted else EXIT_PREEMPTED if preempted else 0
        losses = dict(zip(self.weights, means, strict=True))
        losses["total"] = sum(self.weights[name] * value for name, value in losses.items())
        return losses, not broken_ranks, stop

    def readings(self) -> dict[str, float]:
        """Health of the global batch's first rows; a collective."""
        mine = {name: torch.cat([part[name] for part in self._measured]) for name in self._measured[0]}
        everywhere = {
            name: part.flatten(0, 1) for name, part in collectives.gather_packed(self.group, mine).items()
        }
        sums, patch_sums = (
            everywhere[name].sum(0) if name in everywhere else None for name in ("sums", "patch sums")
        )
        found = representation_metrics.readings(
            everywhere["unit"], other_GE=everywhere.get("other"), sums_PS=sums, patch_sums_PS=patch_sums
        )
        if "scale" in everywhere:
            found["health/contrastive_scale"] = float(everywhere["scale"][0])
        return found

    def _targets(self, name: str) -> Targets:
        if name == "distill":
            summaries = [[one.summary for one in by_direction if one.summary] for by_direction in self.taught]
            return Targets(name, self.loss.distill, summaries, None)
        letters = [
            [one.patches.rows() for one in by_direction if one.patches] for by_direction in self.taught
        ]
        valid = [
            [pair.aligned.valid_BN.flatten() for pair in shown.pairs if pair.aligned] for shown in self.shown
        ]
        return Targets(name, self.loss.patch, letters, valid)

    def _look(self) -> list[list[Outputs]]:
        """The student's features of all micro-batches, without gradient."""
        with torch.no_grad():
            return [_learn(self.engine.network, shown, features_only=True) for shown in self.shown]

    def _inputs(self, m: int, d: int, outputs: list[Outputs], rows: slice) -> dict[str, Callable[[], Any]]:
        """What losses may need, by name, made when it is asked for."""
        pair, said, loss = self.shown[m].pairs[d], outputs[d], self.loss

        def letters() -> Scored:
            assert said.logits_BLV is not None, "the student gives logits"
            return Scored(
                said.logits_BLV, pair.masked.labels_BL, pair.masked.target_BL, pair.weight_BL, self.letters
            )

        def summaries() -> Distilled:
            student_SNK = _readings(said, outputs[0].crops_XPK)
            readings, places, _ = student_SNK.shape
            of_a_row = readings * places // len(said.pooled_BD)
            return Distilled(
                student_SNK,
                self.targets["distill"].probabilities(m, d).flatten(0, 1),
                None,
                loss.distill.student_temperature,
                self.rows_total * self.directions * of_a_row,
            )

        def patches() -> Distilled:
            assert said.patches is not None and said.patches.cosines is not None, "the student gives patches"
            assert pair.aligned is not None, "letters were aligned"
            return Distilled(
                said.patches.cosines.flatten(0, 1)[None],
                self.targets["patch"].probabilities(m, d)[:, 0],
                pair.aligned.valid_BN.flatten().float(),
                loss.patch.student_temperature,
                self.patches,
            )

        def contrast() -> Contrast:
            assert said.embedding_BE is not None and said.scale is not None, "the student gives embeddings"
            place_B = torch.arange(rows.start, rows.stop, device=said.pooled_BD.device)
            return Contrast(
                said.embedding_BE,
                self.keys[d],
                place_B * self.group.size + self.group.rank,
                said.scale,
                self.rows_total * self.directions,
                self.loci_B and self.loci_B.rows(rows),
                self.loci_G,
                cast(Literal["lse", "ref"], loss.contrastive.variant),
            )

        return {"letters": letters, "summaries": summaries, "patches": patches, "contrast": contrast}

    @torch.no_grad()
    def _measure(self, m: int, outputs: list[Outputs], rows: slice) -> dict[str, Tensor]:
        """Some of this micro-batch's rows for ``health.readings``, of the first direction."""
        said = outputs[0]
        found = {} if said.scale is None else {"scale": said.scale[None]}
        student_BE = F.normalize(said.embedding[rows], dim=-1)
        if not self.taught:
            return found | {"unit": student_BE}
        found |= {"unit": F.normalize(self.taught[m][0].embedding[rows], dim=-1), "other": student_BE}
        if "distill" in self.targets:
            assert said.summary is not None and said.summary.cosines is not None, "the student gives cosines"
            log_student_BPK = F.log_softmax(
                said.summary.cosines[rows] / self.loss.distill.student_temperature, dim=-1
            )
            teacher_BPK = self.targets["distill"].probabilities(m, 0)[rows]
            found["sums"] = representation_metrics.prototype_sums(teacher_BPK, log_student_BPK)[None]
        if "patch" in self.targets:
            aligned = self.shown[m].pairs[0].aligned
            assert said.patches is not None and said.patches.cosines is not None and aligned is not None, (
                "patches"
            )
            valid_BN = aligned.valid_BN[rows]
            cosines_R1K = said.patches.cosines[rows][valid_BN][:, None]
            teacher_BNK = self.targets["patch"].probabilities(m, 0).view_as(said.patches.cosines)
            log_student_R1K = F.log_softmax(cosines_R1K / self.loss.patch.student_temperature, dim=-1)
            found["patch sums"] = representation_metrics.prototype_sums(
                teacher_BNK[rows][valid_BN][:, None], log_student_R1K
            )[None]
        return found


def needs_teacher(config: TrainConfig) -> bool:
    """Whether any loss in use reads the teacher."""
    return any(
        name not in WITHOUT_TEACHER and (name != "contrastive" or config.loss.contrastive.keys == "teacher")
        for name in config.loss.weights()
    )


@torch.no_grad()
def _teach(teacher: Network, shown: list[Shown], config: TrainConfig) -> list[list[Outputs]]:
    """The teacher's outputs for its unmasked view of every pair."""
    split = config.loss.distill.balance == "sinkhorn", config.loss.patch.balance == "sinkhorn"
    return [
        [
            teacher(
                pair.teacher.codes_BL,
                length_B=lengths(pair.teacher),
                nucleotides=False,
                letters_BN=pair.aligned.teacher_BN if pair.aligned else None,
                split=split,
            )
            for pair in one.pairs
        ]
        for one in shown
    ]


def _learn(forward: Callable[..., Outputs], shown: Shown, *, features_only: bool = False) -> list[Outputs]:
    """The student's outputs for its masked view of each pair, from one forward: DeepSpeed allows one a
    backward."""
    pairs = shown.pairs
    noises = [pair.noise_BLC for pair in pairs if pair.noise_BLC is not None]
    letters = [pair.aligned.student_BN for pair in pairs if pair.aligned is not None and not features_only]
    codes_BL = torch.cat([pair.masked.codes_BL for pair in pairs])
    outputs = forward(
        codes_BL,
        length_B=ragged(torch.cat([pair.student.length_B for pair in pairs]), codes_BL),
        noise_BLC=torch.cat(noises) if noises else None,
        nucleotides=not features_only,
        letters_BN=torch.cat(letters) if letters else None,
        crops_XL=None if features_only else shown.crops_XL,
        crop_length_X=shown.crop_length_X,
    )
    return outputs.chunk(len(pairs))


def _readings(said: Outputs, crops_XPK: Tensor | None) -> Tensor:
    """[S, B·P, K]: the summaries of the view, then of each crop of the same rows."""
    assert said.summary is not None and said.summary.cosines is not None, "the student gives cosines"
    view_SBPK = said.summary.cosines[None]
    if crops_XPK is not None:
        view_SBPK = torch.cat([view_SBPK, crops_XPK.unflatten(0, (-1, view_SBPK.shape[1]))])
    return view_SBPK.flatten(1, 2)
