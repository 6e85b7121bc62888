"""A registered model on a labelled task: k-mer floor, frozen probe, fine-tuning, and the same network from
scratch.

``python -m trainer.finetune --model models:/findna@candidate --task configs/tasks/NAME.yaml [key=value ...]``

Everything that is chosen is chosen on the dev split; test is scored once for each (seed, mode), in ``_one``.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import configs
from trainer.core.console import say
from trainer.evaluation.embedding import RegisteredModel, best_device, open_model
from trainer.evaluation.tasks.config import ROLES, Mode, TaskConfig
from trainer.evaluation.tasks.data import TaskData, load
from trainer.evaluation.tasks.modes import Workbench
from trainer.evaluation.tasks.results import METRICS, Result, summarise
from trainer.tracking.mlflow_run import Run, RunSpec
from trainer.tracking.registry import Registry

_EXPERIMENT = "finetune"  # of models that no run of ours made
_CANDIDATE_MODES = ("probe", "finetune")


@dataclass(frozen=True)
class _Session:
    """One model version on one task: what all its (seed, mode) share."""

    registry: Registry
    model: RegisteredModel
    task: TaskConfig
    data: TaskData
    bench: Workbench
    settings: str
    experiment: str
    parent: str


def finetune(
    registry: Registry, model_uri: str, task: TaskConfig, *, device: torch.device | None = None
) -> list[Result]:
    """One result for each of the task's modes and seeds, each logged as a child run; the champion alias is
    settled.

    Raises: StoreError, ValueError, TrackError, RuntimeError, each one sentence.
    """
    model = open_model(registry, model_uri)
    experiment = task.track.experiment or registry.experiment_of(model.version.run_id) or _EXPERIMENT
    registry.usable(experiment)  # before the work, not after it
    data = load(task)
    _tell_rows(task, data)
    bench = Workbench(model.network, model.config, task, device or best_device())
    settings = _settings(task, data, bench)
    parent = _parent(registry, model, experiment)
    session = _Session(registry, model, task, data, bench, settings, experiment, parent)
    results = [_one(session, mode, seed) for mode in task.modes for seed in task.seeds]
    say(settle_champion(registry, model, task.name, settings, results))
    return results


def _one(session: _Session, mode: Mode, seed: int) -> Result:
    """Fit and score one (mode, seed), log both, and tell."""
    bench, data, task, version = session.bench, session.data, session.task, session.model.version
    started = time.monotonic()
    with _child(session, mode, seed) as run:
        fitted = bench.fit(mode, data.train, data.dev, seed=seed)
        val = bench.kind.metrics(data.dev.truth_N, fitted.dev_NK)
        test = bench.kind.metrics(data.test.truth_N, fitted.predict(data.test))  # the only look at test
        chosen = ", ".join(f"{name} {value:g}" for name, value in fitted.chosen.items())
        scores = {f"val/{name}": val[name] for name in val} | {f"test/{name}": test[name] for name in test}
        run.record(scores)
        run.tag({"chosen": chosen})
    say(
        f"{task.name} {mode} seed {seed}: dev MCC {val['mcc']:.3f}, test MCC {test['mcc']:.3f} "
        f"({chosen}; {time.monotonic() - started:.1f} s)"
    )
    return Result(
        version.name,
        str(version.version),
        task.name,
        mode,
        seed,
        val,
        test,
        session.settings,
        len(data.train),
        chosen,
    )


def settle_champion(
    registry: Registry, model: RegisteredModel, task: str, settings: str, results: Sequence[Result]
) -> str:
    """Sets alias champion if this version's better of probe and fine-tuning beats the champion's, both on
    dev: why.

    Compared are mean dev MCCs over the modes and seeds that both have, on the same rows with the same
    settings; without those nothing changes.
    """
    name, version = model.version.name, str(model.version.version)
    ours = _best_on_dev(results)
    champion = registry.champion(name)
    if ours is None:
        return f"champion of {name}: unchanged, neither probe nor fine-tuning was run"
    if champion is not None and str(champion.version) == version:
        return f"champion of {name}: version {version} stays"
    if champion is None:
        registry.set_alias(name, "champion", version)
        return f"champion of {name}: version {version}, the first (dev MCC {ours:.3f} on {task})"
    earlier = [
        result
        for result in past_results(registry, name, str(champion.version))
        if result.task == task and result.settings == settings
    ]
    common = {(r.mode, r.seed) for r in results} & {(r.mode, r.seed) for r in earlier}
    ours, theirs = (
        _best_on_dev([r for r in part if (r.mode, r.seed) in common]) for part in (results, earlier)
    )
    if ours is None or theirs is None:
        return (
            f"champion of {name}: version {champion.version} stays, for it was not scored on {task} "
            f"with these "
            f"rows and settings (do so with --model models:/{name}/{champion.version})"
        )
    if ours <= theirs:
        return (
            f"champion of {name}: version {champion.version} stays (dev MCC {theirs:.3f} on {task}, "
            f"ours {ours:.3f})"
        )
    registry.set_alias(name, "champion", version)
    return f"champion of {name}: version {version} (dev MCC {ours:.3f} on {task}, was {theirs:.3f})"


def past_results(registry: Registry, model: str, version: str) -> list[Result]:
    """Every finished fine-tuning result of a model version, in whatever experiment, oldest first."""
    tags = {"model.version": version, "model.name": model, "finetune": "child"}
    results = []
    for run in registry.tagged(None, tags, finished=True):
        metrics, params, tags_ = run.data.metrics, run.data.params, run.data.tags
        val, test = ({name: metrics[f"{split}/{name}"] for name in METRICS} for split in ("val", "test"))
        results.append(
            Result(
                model,
                version,
                params["task"],
                params["mode"],
                int(params["seed"]),
                val,
                test,
                params["settings"],
                int(params["train_rows"]),
                tags_.get("chosen", ""),
            )
        )
    return results


def _best_on_dev(results: Sequence[Result]) -> float | None:
    summary = summarise([result for result in results if result.mode in _CANDIDATE_MODES])
    return None if summary.empty else float(summary["val_mcc"].max())


def _parent(registry: Registry, model: RegisteredModel, experiment: str) -> str:
    """The run id of the parent of all fine-tuning of this version, made if there is none."""
    name, version = model.version.name, str(model.version.version)
    tags = {"model.version": version, "model.name": name, "finetune": "parent"}
    found = registry.tagged(experiment, tags)
    if found:
        return str(found[0].info.run_id)
    spec = RunSpec(registry.uri, experiment, f"{name} v{version} fine-tuning", tags=tags)
    with Run(spec) as run:
        return run.id


def _child(session: _Session, mode: Mode, seed: int) -> Run:
    task, data, version = session.task, session.data, session.model.version
    resolved = configs.dump(task)
    section = "finetune" if mode == "scratch" else mode
    params = {
        "task": task.name,
        "seed": seed,
        "mode": mode,
        "settings": session.settings,
        **{f"{split.role}_rows": len(split) for split in (data.train, data.dev, data.test)},
        **{f"{role}_uri": resolved[role] for role in ROLES if resolved[role]},
        **configs.flatten({section: resolved[section]}),
    }
    return Run(
        RunSpec(
            session.registry.uri,
            session.experiment,
            f"{task.name} {mode} seed {seed}",
            params=params,
            tags={"model.version": str(version.version), "model.name": version.name, "finetune": "child"},
            parent=session.parent,
        )
    )


def _settings(task: TaskConfig, data: TaskData, bench: Workbench) -> str:
    """12 hex digits of the rows and all that shapes a result but mode and seed: results that share them
    compare."""
    resolved = configs.dump(task)
    shaping = {key: resolved[key] for key in ("kind", "labels", "finetune", "probe", "kmer")}
    text = json.dumps([shaping, bench.precision, data.sha256()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tell_rows(task: TaskConfig, data: TaskData) -> None:
    rows = ", ".join(f"{split.role} {len(split):,}" for split in (data.train, data.dev, data.test))
    leaks = ", ".join(f"{count} of {role}" for role, count in data.dropped.items() if count)
    say(
        f"{task.name}: {rows} rows"
        + (f"; left out, as dev or test holds the same sequence: {leaks}" if leaks else "")
    )
    for remark in data.remarks:
        say(f"{task.name}: {remark}")
