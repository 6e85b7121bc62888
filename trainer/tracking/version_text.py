"""What a registered version says of itself: its tags, and its description in markdown."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.tracking import markdown
from trainer.tracking.candidate import Decision

ACCURACY, MAJORITY, MARKOV = "val/mlm_accuracy", "val/mlm_accuracy_majority", "val/mlm_accuracy_markov"
WINDOWS_TAG = "val.windows_sha256"  # of the run and of its versions
DATASET_TAG = "dataset.manifest_sha256"
MODEL_VERSIONS = "mlflow.modelVersions"  # of a logged model: what its page calls Model versions
MODEL_DESCRIPTION = (
    "DNA encoders pretrained by self-distillation, one version for each registered step of a run; a version "
    "never changes.\n\n"
    "- `candidate`: what fine-tuning takes. No version that was measured on the same held-out windows before "
    "it had a higher accuracy at masked letters.\n"
    "- `champion`: the best on labelled tasks, by their dev splits. There is none until a version is better "
    "there than without pretraining, or than a model without a network.\n\n"
    "The tags of a version say how far it was trained, on what, and why it holds an alias or not."
)


def versions_text(name: str, version: str) -> str:
    """The value of ``MODEL_VERSIONS`` for the one version that a logged model has."""
    return json.dumps([{"name": name, "version": version}])


@dataclass(frozen=True)
class Facts:
    """What is known of the export of a step.

    ``run_tags``: of the run. ``metrics``: the validation of that step, empty if there was none.
    """

    model: str
    step: int
    bp: int
    run_id: str
    run_name: str
    run_tags: Mapping[str, str]
    metrics: Mapping[str, float]

    def tags(self, decision: Decision) -> dict[str, str]:
        """Of the version. What is not known has no tag."""
        accuracy = self.metrics.get(ACCURACY)
        known = {
            "val.mlm_accuracy": None if accuracy is None else repr(accuracy),
            WINDOWS_TAG: self.run_tags.get(WINDOWS_TAG),
            DATASET_TAG: self.run_tags.get(DATASET_TAG),
        }
        return {
            "step": str(self.step),
            "bp": str(self.bp),
            "run.id": self.run_id,
            "candidate": "yes" if decision.moves else "no",
            "candidate.reason": decision.reason,
            **{key: value for key, value in known.items() if value is not None},
        }

    def description(self, version: str, reason: str) -> str:
        """Markdown: what it is, how good it is, and how to go on. ``reason``: of the decision."""
        uri = f"models:/{self.model}/{version}"
        digests = self.run_tags.get(DATASET_TAG, "")
        data = f" on data with manifest `{digests[:12]}`" if digests else ""
        return "\n".join(
            [
                f"Step {self.step:,}, {self._accuracy()}.",  # the model's page shows only some 30 letters
                "",
                f"A DNA encoder: the teacher of run `{self.run_name}` ({self.run_id}), a moving average, "
                f"after {bp_text(self.bp)}{data}.",
                "",
                self._scores(),
                "",
                f"When it was registered: {reason}.",
                "",
                "Fine-tune it on labelled tasks, take its embeddings, or write it, with a model card, as a "
                "folder that others open:",
                "```",
                f"python -m cluster finetune --model {uri} --tasks configs/tasks/*.yaml",
                f"python -m trainer.embed --model {uri} --input regions.fa --output embeddings.parquet",
                f"python -m trainer.export --model {uri} --output FOLDER",
                "```",
            ]
        )

    def _accuracy(self) -> str:
        return f"accuracy {self.metrics[ACCURACY]:.4f}" if ACCURACY in self.metrics else "not validated"

    def _scores(self) -> str:
        rows = [(ACCURACY, "this version"), (MARKOV, "Markov"), (MAJORITY, "majority")]
        found = [(label, self.metrics[key]) for key, label in rows if key in self.metrics]
        if not found:
            return "It was not validated at this step."
        headings = ("masked letters, held-out windows", "accuracy")
        return markdown.table(headings, [(label, f"{value:.4f}") for label, value in found])


def bp_text(count: int) -> str:
    """``count`` bp in three or four digits."""
    for size, name in ((10**12, "Tbp"), (10**9, "Gbp"), (10**6, "Mbp"), (10**3, "kbp")):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count} bp"
