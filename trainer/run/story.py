"""What a reviewer reads of a pretraining run in MLflow, as text: its name, its description, its datasets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from cluster.storage import store
from configs import redact
from trainer.data.dataset import Dataset
from trainer.evaluation.statistics import standard_error
from trainer.run.config import TrainConfig
from trainer.tracking import markdown
from trainer.tracking.inputs import DatasetInput

ABOUT = (
    "DNA encoders pretrained by self-distillation. Each run on the first level is a pretraining; below it "
    "lie the runs that fine-tune and score its registered versions on labelled tasks.\n\n"
    "Compare pretrainings by `val/mlm_accuracy` (against `val/mlm_accuracy_markov`), fine-tuning by the "
    "summary table in the description of its parent run."
)
_CONTEXTS = {"train": "training", "val": "validation"}
_BASELINES = (
    ("val/mlm_accuracy_majority", "the most frequent letter"),
    ("val/mlm_accuracy_markov", "the 4+4 Markov model"),
)


@dataclass(frozen=True)
class Validated:
    """The metrics of a validation after ``step``."""

    step: int
    metrics: Mapping[str, float]


def run_name(config: TrainConfig) -> str:
    """The name in MLflow: run.name as it was given, else with the folder that tells the run from others."""
    run = config.run
    if "name" in run.model_fields_set:
        return run.name
    folder = PurePosixPath(str(redact(run.dir)).rstrip("/")).name
    return f"{run.name} ({folder})" if folder not in ("", run.name) else run.name


def dataset_inputs(datasets: Sequence[Dataset]) -> tuple[DatasetInput, ...]:
    """The splits that training and validation read, as inputs of the MLflow run."""
    return tuple(
        DatasetInput(
            name=f"{_sources(dataset)} {split}",
            digest=dataset.digest,
            uri=dataset.uri,
            context=_CONTEXTS[split],
            columns={"assembly": "string", "contig": "string", "start": "long", "end": "long"},
            profile={
                "bp": dataset.manifest.bp(split),
                "blocks": len(dataset.manifest.blocks(split)),
                "contigs": len({contig for _, contig in dataset.manifest.blocks(split).columns.places}),
            },
        )
        for dataset in datasets
        for split in _CONTEXTS
        if dataset.manifest.blocks(split)
    )


def description(
    config: TrainConfig, datasets: Sequence[DatasetInput], parameters: int, latest: Validated | None
) -> str:
    """The run's description in markdown: what, data, result against the baselines, how to go on."""
    return "\n\n".join(
        [
            _what(config, parameters),
            _headline(latest),
            "### Data\n"
            + markdown.table(("split", "bp", "contigs", "digest", "lies at"), _data_rows(datasets)),
            _result(latest, config.train.steps),
            _how_to_go_on(config),
        ]
    )


def _what(config: TrainConfig, parameters: int) -> str:
    losses = ", ".join(f"{name} (weight {weight:g})" for name, weight in config.loss.weights().items())
    lengths = " then ".join(f"{part.length:,} bp" for part in config.data.length)
    regions = config.data.regions.in_words
    centred = f"; centred on regions: {regions}" if regions else ""
    return (
        f"**Pretraining of a DNA encoder by self-distillation:** {config.model.name}, {parameters:,} "
        f"parameters; {config.train.steps:,} steps of {config.train.global_batch:,} windows of {lengths}, "
        f"{config.bp(0, config.train.steps):,} bp in all{centred}. "
        f"Losses: {losses}. Seed {config.run.seed}."
    )


def _headline(latest: Validated | None) -> str:
    """The result in a sentence: MLflow shows only the first lines of a description until it is unfolded."""
    if latest is None:
        return "**Result:** not validated yet."
    accuracy, error = latest.metrics["val/mlm_accuracy"], _error(latest)
    levels = {name: latest.metrics[metric] for metric, name in _BASELINES}
    above = [name for name, level in levels.items() if accuracy - level >= 3 * error]
    verdict = (
        "above both baselines"
        if len(above) == len(levels)
        else f"above {above[0]} only"
        if above
        else "above no baseline"
    )
    beside = ", ".join(f"{name} {level:.3f}" for name, level in levels.items())
    return (
        f"**Result after step {latest.step:,}: {verdict}** (by 3 standard errors). The teacher predicts "
        f"{accuracy:.3f} ± {error:.3f} of the hidden letters of held-out contigs; {beside}."
    )


def _error(latest: Validated) -> float:
    return standard_error(latest.metrics["val/mlm_accuracy"], latest.metrics["val/scored_positions"])


def _data_rows(datasets: Sequence[DatasetInput]) -> list[tuple[str, ...]]:
    return [
        (
            f"{each.name} ({each.context})",
            f"{each.profile['bp']:,}",
            f"{each.profile['contigs']:,}",
            f"`{each.digest[:12]}`",
            f"`{redact(store.absolute(each.uri))}`",
        )
        for each in datasets
    ]


def _result(latest: Validated | None, steps: int) -> str:
    if latest is None:
        return "### Result\nNot validated yet."
    accuracy, error = latest.metrics["val/mlm_accuracy"], _error(latest)
    rows = [("the teacher", f"{accuracy:.4f} ± {error:.4f}", "")]
    for metric, name in _BASELINES:
        level = latest.metrics[metric]
        rows.append((name, f"{level:.4f}", _difference(accuracy - level, error)))
    return (
        f"### Result after step {latest.step:,} of {steps:,}\n"
        f"Of {latest.metrics['val/scored_positions']:,.0f} hidden letters of held-out contigs.\n\n"
        + markdown.table(("who predicts", "right", "the teacher is"), rows)
    )


def _difference(value: float, error: float) -> str:
    side = "above" if value > 0 else "below"
    return f"{side} by {abs(value):.4f} ({abs(value / error):.1f} standard errors)"


def _how_to_go_on(config: TrainConfig) -> str:
    lines = ["### How to go on"]
    run_dir, model = redact(store.absolute(config.run.dir)), config.track.registered_model
    lines.append(
        f"- The run lies at `{run_dir}`. The command that began it goes on from the newest checkpoint; with "
        "a larger `train.steps=` it trains longer."
    )
    if model:
        uri = f"models:/{model}@candidate"
        lines += [
            "- The versions that this run registered stand under Registered models. Score the newest "
            "candidate on a labelled task, or embed sequences:",
            "```",
            f"python -m trainer.finetune --model {uri} --task configs/tasks/NAME.yaml",
            f"python -m trainer.embed --model {uri} --input regions.fa --output embeddings.parquet",
            "```",
        ]
    lines.append(
        "- Artifacts: `report/index.html` (curves and tables), `log.txt` (what the run said), `config.yaml`."
    )
    return "\n".join(lines)


def _sources(dataset: Dataset) -> str:
    return "+".join(source.name for source in dataset.manifest.sources)
