"""What a study has found so far, read from MLflow and its folder; nothing here writes or draws."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from cluster.process import host
from trainer.evaluation.tasks.config import ENCODER_MODES, SEEDLESS
from trainer.evaluation.tasks.results.results_log import stored_results
from trainer.study.comparison import Comparison, compare_all
from trainer.study.config import FLOOR, SCRATCH
from trainer.study.plan import StudyPlan
from trainer.study.pretrainings import Trained, statuses, trained
from trainer.study.table import Asked, Version, study_table
from trainer.tracking.registry import Registry


@dataclass(frozen=True)
class Findings:
    """A study's rows and comparisons.

    Attributes:
        seconds: of each pretraining that is done, by its name: those of its steps.
        missing: sentences about what was not computed yet.
        machine: in words.
    """

    plan: StudyPlan
    table: pd.DataFrame
    comparisons: Sequence[Comparison]
    seconds: Mapping[str, float]
    missing: Sequence[str]
    machine: str


def find(plan: StudyPlan, registry: Registry, asked: Sequence[Asked]) -> Findings:
    """What there is. TrackError, StoreError, ConfigError: it cannot be read, or is another study's."""
    config, status = plan.config, statuses(plan.pretrainings)
    done = [trained(registry, one) for one in plan.pretrainings if status[str(one)] == "finished"]
    seconds = {str(one.pretraining): seconds_of(registry, one) for one in done}
    of_arm = {arm: scratch for scratch, arm in plan.scratch.items()}
    models = {one.arm: one.config.model for one in plan.pretrainings}
    same = {
        arm: next((of_arm[other] for other in of_arm if models[other] == models[arm]), None) for arm in models
    }
    versions = {
        one.version: Version(
            one.pretraining.arm,
            one.pretraining.seed,
            same[one.pretraining.arm],
            one.pretraining.cost.flops,
            seconds[str(one.pretraining)],
        )
        for one in done
    }
    results = [stored.result for stored in stored_results(registry, config.model)]
    table = study_table(results, asked=asked, versions=versions)
    comparisons = compare_all(table, config.pairs(), config.statistics) if len(table) else []
    waiting = [str(one) for one in plan.pretrainings if status[str(one)] != "finished"]
    missing = [f"Not pretrained yet: {', '.join(waiting)}."] if waiting else []
    if lacking := len(wanted(plan, asked)) - len(table):
        missing.append(f"{lacking:,} of {len(wanted(plan, asked)):,} results on tasks are not there yet.")
    known = {name: value for name, value in seconds.items() if value is not None}
    return Findings(plan, table, comparisons, known, missing, machine())


def wanted(plan: StudyPlan, asked: Sequence[Asked]) -> set[tuple[object, ...]]:
    """The keys of the rows that a complete study has."""
    found: set[tuple[object, ...]] = set()
    for one in asked:
        for mode in one.modes:
            arms: list[tuple[str, int | None]] = [(FLOOR, None)]
            if mode == SCRATCH:
                arms = [(arm, None) for arm in plan.scratch]
            elif mode in ENCODER_MODES:
                arms = [(each.arm, each.seed) for each in plan.pretrainings]
            seeds = (0,) if mode in SEEDLESS else one.seeds
            found |= {(one.task, one.rows, arm, mode, seed, at) for arm, seed in arms for at in seeds}
    return found


def seconds_of(registry: Registry, one: Trained) -> float | None:
    """The seconds that the steps of a pretraining took; None if it logged no times."""
    times = registry.history(one.run_id, "throughput/step_ms")["value"]
    return float(times.mean()) / 1000 * one.pretraining.cost.steps if len(times) else None


def machine() -> str:
    """This machine in words: its processor, its cores, its GPUs."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    found = f"{names[0] if names else platform.processor() or platform.machine()}, {host.usable()} cores"
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    return f"{found}, {len(gpus)} × {gpus[0]}" if gpus else found
