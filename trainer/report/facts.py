"""The content of a report, read from MLflow, the dataset and the exported teacher. Nothing here writes or
draws."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import yaml

from data_prep import shards
from data_prep.manifests import open_manifest
from trainer.evaluation.statistics import standard_error
from trainer.evaluation.tasks.results.results import summarise
from trainer.evaluation.tasks.results.results_log import past_results
from trainer.report.figures import Histories
from trainer.tracking.registry import Registry
from trainer.tracking.version_text import DATASET_TAG


def histories(registry: Registry, run: Any) -> Histories:
    """Every metric that the run logged, with all its points."""
    return {name: registry.history(run.info.run_id, name) for name in sorted(run.data.metrics)}


def verdict(found: Histories) -> list[str]:
    """Plain sentences: held-out accuracy against the majority letter and Markov in standard errors, and its
    course."""
    if "val/mlm_accuracy" not in found:
        return ["The run logged no held-out accuracy."]
    values = found["val/mlm_accuracy"]["value"].tolist()
    last = values[-1]
    scored = last_value(found, "val/scored_positions")
    error = standard_error(last, scored) if scored else None
    spread = f" ± {error:.4f} (one standard error, {scored:,.0f} positions)" if error and scored else ""
    sentences = [f"The teacher predicts {last:.4f}{spread} of the hidden letters of held-out contigs."]
    for metric, name in (
        ("val/mlm_accuracy_majority", "always guessing the most frequent letter"),
        ("val/mlm_accuracy_markov", "the two-sided 4+4 Markov model"),
    ):
        level = last_value(found, metric)
        if level is not None:
            sentences.append(_against(last, level, name, error))
    if error is None:
        sentences.append("Standard errors are not known: the run logged no val/scored_positions.")
    sentences.append(_course(values, error))
    return sentences


def trouble(found: Histories, status: str) -> list[str]:
    """Plain sentences on what went wrong, if anything did: a failed run, a collapse, skipped steps.

    Args:
        status: MLflow's, of the run.
    """
    last, sentences = max((int(points["step"].max()) for points in found.values()), default=None), []
    if status == "FAILED":
        sentences.append(
            "The run failed before it logged anything."
            if last is None
            else f"The run failed at step {last}, the last that it logged."
        )
    if "batch_health/collapsed" in found:
        sentences += _collapse(found["batch_health/collapsed"])
    skipped = last_value(found, "train/skipped_steps")
    if skipped:
        were = "step was skipped, since its" if skipped == 1 else "steps were skipped, since their"
        sentences.append(f"{skipped:,.0f} {were} loss or gradient was not finite.")
    return sentences


def throughput(found: Histories) -> list[str]:
    """Plain sentences on the speed at the last reading, and on goodput; none if nothing was read."""
    names = ("step_ms_p50", "step_ms_p95", "data_wait_fraction", "device_wait_fraction", "host_fraction")
    last = [last_value(found, f"throughput/{name}") for name in names]
    sentences = []
    if all(value is not None for value in last):
        middle, slow, data, device, host = (float(value or 0) for value in last)
        sentences.append(
            f"At the last reading half of the steps took up to {middle:.1f} ms, 95 % up to {slow:.1f} ms. "
            f"Of the time {data:.1%} was waiting for data, {device:.1%} for the device and other ranks, "
            f"{host:.1%} the host's own."
        )
    goodput = last_value(found, "throughput/goodput")
    if goodput is not None:
        sentences.append(
            f"Goodput {goodput:.1%}: of the time since the run began, resumes and what lay between them "
            "included, that share was spent in steps whose update was applied and kept."
        )
    peaks = (last_value(found, "throughput/mfu"), last_value(found, "throughput/mfu_nominal"))
    if peaks[0] is not None:
        nominal = "" if peaks[1] is None else f", {peaks[1]:.1%} of the nominal bf16 rate of the chip"
        sentences.append(
            f"Model FLOPs utilisation: {peaks[0]:.1%} of a product of random matrices measured at the "
            f"start{nominal}; FLOPs by formula."
        )
    return sentences


def _collapse(flags: pd.DataFrame) -> list[str]:
    collapsed = flags[flags["value"] == 1]
    if not len(collapsed):
        return []
    first, last = int(collapsed["step"].iloc[0]), int(flags["step"].iloc[-1])
    still = "still" if flags["value"].iloc[-1] == 1 else "but no longer"
    return [
        f"From step {first} on the batch showed a collapse, in {len(collapsed):,} of {len(flags):,} "
        f"readings, {still} in the last one, at step {last}."
    ]


def _against(value: float, level: float, name: str, error: float | None) -> str:
    side = "above" if value > level else "below" if value < level else "equal to"
    text = f"That is {side} {name} ({level:.4f})"
    if error is None:
        return f"{text} by {abs(value - level):.4f}."
    errors = (value - level) / error
    text += f" by {abs(errors):.1f} standard errors"
    return text + ("." if abs(errors) >= 3 else ", which is less than 3: no difference is shown.")


def _course(values: Sequence[float], error: float | None) -> str:
    if len(values) < 2:
        return "It was measured once, so nothing can be said of its course."
    change, latest = values[-1] - values[0], values[-1] - values[-2]
    text = f"From first to last validation it went from {values[0]:.4f} to {values[-1]:.4f}"
    if error is None:
        return f"{text}: {'rising' if change > 0 else 'not rising'}."
    risen = "rising" if change >= 3 * error * math.sqrt(2) else "not rising beyond chance (3 standard errors)"
    return f"{text}: {risen}; the last interval changed it by {latest:+.4f}."


def last_value(found: Histories, metric: str) -> float | None:
    return float(found[metric]["value"].iloc[-1]) if metric in found else None


class ReadDataset(NamedTuple):
    """A dataset of a run; ``digest``: sha256 of the manifest that it read, None where that is not known."""

    uri: str
    digest: str | None


def datasets_of(run: Any) -> list[ReadDataset]:
    """The datasets of a run, from its parameter ``data.uri`` (a URI, or a mixture as it was given) and the
    tag of their manifests."""
    given = run.data.params["data.uri"]
    uris = [part["uri"] for part in yaml.safe_load(given)] if given.startswith("[") else [given]
    digests = run.data.tags.get(DATASET_TAG, "").split(",")
    known = digests if len(digests) == len(uris) else [""] * len(uris)
    return [ReadDataset(uri, digest or None) for uri, digest in zip(uris, known, strict=True)]


def first_with_val(datasets: Sequence[ReadDataset]) -> ReadDataset:
    """The first dataset that holds something out; the first of all where none does."""
    several = datasets if len(datasets) > 1 else ()
    return next((each for each in several if _manifest(each).shards["val"]), datasets[0])


def dataset_rows(dataset: ReadDataset) -> list[tuple[str, str]]:
    """Names and values for a table. StoreError or FormatError if the manifest cannot be read."""
    manifest = _manifest(dataset)
    written = [shard for split in shards.SPLITS for shard in manifest.shards[split]]
    bp, size = {split: manifest.bp(split) for split in shards.SPLITS}, sum(shard.bytes for shard in written)
    total = sum(bp.values())
    return [
        ("URI", dataset.uri),
        (
            "sources",
            ", ".join(
                f"{s.name} ({len(s.contigs)} contigs, {sum(s.contigs.values()):,} bp)"
                for s in manifest.sources
            ),
        ),
        ("kept", f"{total:,} bp: " + ", ".join(f"{split} {count:,}" for split, count in bp.items())),
        (
            "held-out contigs",
            ", ".join(sorted({contig for _, contig in manifest.blocks("val").columns.places})) or "none",
        ),
        ("shards", f"{len(written)}, {size:,} bytes"),
        ("bytes per bp", f"{size / total:.4f}" if total else "–"),
    ]


def _manifest(dataset: ReadDataset) -> shards.Manifest:
    return open_manifest(dataset.uri, digest=dataset.digest).manifest


def model_uri(run: Any) -> str | None:
    """``models:/NAME/VERSION`` of the teacher that the run registered, or None."""
    name, version = run.data.params.get("track.registered_model"), run.data.tags.get("model.version")
    return f"models:/{name}/{version}" if name and name != "None" and version else None


def version_rows(versions: Sequence[Any]) -> list[tuple[str, ...]]:
    """Model, version, step, held-out accuracy, aliases, and why it is candidate or not, of each version."""
    return [
        (
            str(version.name),
            str(version.version),
            version.tags.get("step", ""),
            _short(version.tags.get("val.mlm_accuracy", "")),
            ", ".join(version.aliases),
            version.tags.get("candidate.reason", ""),
        )
        for version in versions
    ]


def _short(number: str) -> str:
    """A number that was kept with all its digits, as tables have it; "" stays."""
    return f"{float(number):.4f}" if number else ""


def transfer_summary(registry: Registry, run: Any) -> pd.DataFrame:
    """The fine-tuning results of the run's model version, summarised; empty if there are none."""
    if model_uri(run) is None:
        return summarise([])
    return summarise(
        past_results(registry, run.data.params["track.registered_model"], run.data.tags["model.version"])
    )
