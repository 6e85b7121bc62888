"""What MLflow knows of a version, for its model card."""

from collections.abc import Mapping
from typing import Any

import yaml

from cluster.storage import store
from data_prep import shards
from data_prep.manifests import open_manifest
from trainer.evaluation.tasks.results.parent_story import READING
from trainer.evaluation.tasks.results.results import summarise
from trainer.evaluation.tasks.results.results_log import past_results
from trainer.evaluation.tasks.results.results_table import results_tables
from trainer.models import pretrained
from trainer.models.network import Network
from trainer.sharing.card_facts import CardFacts, ComputeFacts, DataFacts, data_facts, unread_data
from trainer.tracking import markdown
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.registry import Registry
from trainer.tracking.version_text import ACCURACY, DATASET_TAG, MAJORITY, MARKOV

_HELD_OUT = (ACCURACY, MAJORITY, MARKOV, "val/mlm_loss", "val/scored_positions")


def version_facts(registry: Registry, version: Any, network: Network) -> CardFacts:
    """Of ``version``, MLflow's, with its ``network``; what its run does not tell is not known.

    Raises:
        TrackError: MLflow does not answer.
    """
    run = _run_of(registry, version)
    step = int(version.tags["step"]) if "step" in version.tags else None
    params: Mapping[str, str] = run.data.params if run else {}
    return CardFacts(
        name=version.name,
        config=pretrained.shared_config(network),
        parameters=pretrained.parameter_count(network),
        uri=f"models:/{version.name}/{version.version}",
        step=step,
        settings={key: value for key, value in params.items() if value != "None"},
        data=_data(params, run.data.tags.get(DATASET_TAG, "") if run else ""),
        compute=_compute(version, run, is_last=step is None or str(step) == params.get("train.steps")),
        held_out=_held_out(registry, run, step) if run else {},
        code=run.data.tags.get("git.commit", "") if run else "",
    )


def labelled_results(registry: Registry, name: str, version: str) -> str:
    """The results of a version on labelled tasks in markdown, beside their floors; "" where there are none.

    Raises:
        TrackError: MLflow does not answer.
    """
    results = past_results(registry, name, version)
    tables = [markdown.table(one.headings, one.rows, gap="") for one in results_tables(summarise(results))]
    return "\n\n".join([*tables, READING]) if results else ""


def _run_of(registry: Registry, version: Any) -> Any | None:
    """The run that made it; None if there is none any more."""
    try:
        return registry.run(version.run_id) if version.run_id else None
    except TrackError as fault:
        if fault.transient:
            raise
        return None


def _held_out(registry: Registry, run: Any, step: int | None) -> dict[str, float]:
    """The metrics after ``step``; the last ones for a version of releases that noted no step."""
    found = {}
    for metric in _HELD_OUT:
        if metric in run.data.metrics:
            points = registry.history(run.info.run_id, metric)
            points = points if step is None else points[points["step"] == step]
            if len(points):
                found[metric] = float(points["value"].iloc[-1])
    return found


def _compute(version: Any, run: Any | None, *, is_last: bool) -> ComputeFacts:
    bp = int(version.tags["bp"]) if "bp" in version.tags else None
    if run is None:
        return ComputeFacts(bp)
    ranks, end = run.data.tags.get("world_size"), run.info.end_time
    wall_s = (end - run.info.start_time) / 1000 if end and is_last else None
    return ComputeFacts(bp, devices=f"{ranks} processes" if ranks else "", wall_s=wall_s)


def _data(params: Mapping[str, str], digests: str) -> list[DataFacts]:
    """Of each dataset, from its manifest where that is still the one of the training."""
    given = params.get("data.uri", "")
    if not given:
        return []
    parts = yaml.safe_load(given) if given.startswith("[") else [{"uri": given}]
    known = digests.split(",") if digests else [""] * len(parts)
    return [
        _dataset(part["uri"], digest, weight=float(part.get("weight", 1)))
        for part, digest in zip(parts, known, strict=False)
    ]


def _dataset(uri: str, digest: str, *, weight: float) -> DataFacts:
    try:
        found = open_manifest(uri, digest=digest or None)
    except (store.StoreError, shards.FormatError) as fault:
        return unread_data(uri, digest, f"its manifest cannot be read here ({fault})")
    return data_facts(uri, found.manifest, found.digest, weight=weight)
