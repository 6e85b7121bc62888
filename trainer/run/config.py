"""The training config: one section from each room, and what they must agree in."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from cluster.process import paths
from configs import Section
from trainer.core import random
from trainer.data.config import Data
from trainer.distill.config import Health
from trainer.engine.config import Ema, Train
from trainer.evaluation.config import Validation
from trainer.losses.config import Loss, loss_section
from trainer.losses.term import Moment
from trainer.models.config import Model, default_model
from trainer.run.checkpoint.config import Checkpoint
from trainer.tracking import names
from trainer.tracking.config import Track
from trainer.views.config import Views

_DATABASE = re.compile(
    r"(sqlite|postgresql|mysql|mssql)\b"
)  # MLflow without a server: its artifacts go where it runs


class Run(Section):
    dir: str
    name: Annotated[str, AfterValidator(names.run)] = "findna"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0


class TrainConfig(Section):
    run: Run
    data: Data
    model: Model = Field(default_factory=default_model)
    views: Views = Views()
    loss: Loss = Field(default_factory=loss_section)
    ema: Ema = Ema()
    train: Train
    health: Health = Health()
    val: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Field(default_factory=Track)

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        faults = self.loss.faults(self.views, global_batch=self.train.global_batch)
        faults += self.views.faults(min(part.length for part in self.data.length))
        faults += self.model.faults(zero_stage=self.train.zero_stage, precision=self.train.precision)
        terms = self.loss.terms()
        if self.data.partners.share and not any(
            term.reads_teacher and not term.needs_same_letters for term in terms
        ):
            faults.append(
                "data.partners.share: the teacher alone reads partners, and no loss in use compares its "
                "whole windows; give loss.contrastive, loss.distill or loss.vicreg a weight"
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def refuse_lost(self) -> None:
        """ConfigError where what the run writes would lie in a folder that Ray deletes, or its data are not
        there."""
        track = self.track
        artifacts = track.artifact_uri or (
            "./mlruns" if _DATABASE.match(track.uri) else None
        )  # MLflow's own default
        outputs = {"run.dir": self.run.dir, "track.uri": track.uri, "track.artifact_uri": artifacts}
        inputs = [("data.uri", part.uri) for part in self.data.uri]
        inputs += [("data.regions.beds", bed.uri) for bed in self.data.regions.beds]
        paths.refuse_lost(outputs=outputs, inputs=inputs)

    @property
    def schedule_steps(self) -> int:
        return self.train.schedule_steps or self.train.steps

    def moment(self, steps: int) -> Moment:
        """When in the run the step is that has ``steps`` before it."""
        return Moment(min(1.0, steps / self.schedule_steps), int(random.fold(self.run.seed, steps)))

    def bp(self, first: int, last: int) -> int:
        """What the steps ``first`` … ``last`` - 1, counted from 0, read: bp of the source windows of all
        ranks."""
        parts = self.data.length
        ends = [*(part.from_step for part in parts[1:]), last]
        return self.train.global_batch * sum(
            part.length * max(0, min(end, last) - max(part.from_step, first))
            for part, end in zip(parts, ends, strict=True)
        )
