"""Results in MLflow: one parent run for each model version, one child run for each result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import configs
from trainer.core.console import say
from trainer.evaluation.registered_model import RegisteredModel
from trainer.evaluation.tasks.child_story import one_line, run_name, task_inputs
from trainer.evaluation.tasks.config import ROLES, TaskConfig
from trainer.evaluation.tasks.registry import DEFAULT_KIND, KINDS
from trainer.evaluation.tasks.results import Result, Unit
from trainer.tracking.mlflow_run import Run, RunSpec
from trainer.tracking.provenance import NOTE, source_tags
from trainer.tracking.registry import Registry


@dataclass(frozen=True)
class ResultsLog:
    """Where the results of a model version on a task go, and what all their runs hold.

    ``parent``: the id of the parent run. ``data_sha256``: of the rows; "" where only ``settings`` is known.
    """

    uri: str
    experiment: str
    parent: str
    task: TaskConfig
    settings: str
    rows: Mapping[str, int]
    data_sha256: str = ""
    command: str = "trainer/finetune.py"

    def open(self, unit: Unit) -> Run:
        """A child run for the result of ``unit``; ``with`` ends it, as failed where the unit fails."""
        return Run(
            RunSpec(
                uri=self.uri,
                experiment=self.experiment,
                name=run_name(unit),
                params=self._params(unit),
                tags=_tags(unit.model, unit.version, "child")
                | source_tags(self.command)
                | {NOTE: one_line(unit, self.rows)},
                parent=self.parent,
                inputs=task_inputs(self.task, self.rows, digest=self.data_sha256 or self.settings),
            )
        )

    def _params(self, unit: Unit) -> dict[str, Any]:
        resolved = configs.dump(self.task)
        section = "finetune" if unit.mode == "scratch" else unit.mode
        return {
            "task": unit.task,
            "kind": self.task.kind,
            "seed": unit.seed,
            "mode": unit.mode,
            "settings": self.settings,
            **{f"{role}_rows": count for role, count in self.rows.items()},
            **{f"{role}_uri": resolved[role] for role in ROLES if resolved[role]},
            **configs.flatten({section: resolved[section]}),
        }


def log_result(run: Run, result: Result) -> None:
    """The scores of ``result`` in its run, and what was chosen on dev."""
    run.record(result.scores())
    run.tag({"chosen": result.chosen})


def parent_run(registry: Registry, model: RegisteredModel, experiment: str) -> str:
    """The id of the parent run of all fine-tuning of this version; it is made if there is none."""
    tags = _tags(model.name, model.version, "parent")
    found = registry.tagged(experiment, tags)
    if found:
        return str(found[0].info.run_id)
    name = f"{model.name} v{model.version} fine-tuning"
    if model.run_id:
        tags["mlflow.parentRunId"] = model.run_id
    with Run(RunSpec(registry.uri, experiment, name, tags=tags | source_tags("trainer/finetune.py"))) as run:
        return run.id


def past_results(registry: Registry, model: str, version: str) -> list[Result]:
    """Every finished result of a model version, in all experiments, oldest first.

    A result of a kind of task that this code does not know is left out with a warning.
    """
    results = []
    for run in registry.tagged(None, _tags(model, version, "child"), finished=True):
        params = run.data.params
        kind = params.get("kind", DEFAULT_KIND)  # the runs of before had one kind and did not log it
        if kind not in KINDS:
            say(
                f"warning: MLflow run {run.info.run_id} is left out: its task {params['task']} is of kind "
                f"{kind!r}, this code knows {', '.join(sorted(KINDS))}"
            )
            continue
        val, test = (
            {metric.name: run.data.metrics[f"{split}/{metric.name}"] for metric in KINDS[kind].metrics}
            for split in ("val", "test")
        )
        results.append(
            Result(
                Unit(model, version, params["task"], params["mode"], int(params["seed"])),
                val,
                test,
                kind=kind,
                settings=params["settings"],
                rows={role: int(params[f"{role}_rows"]) for role in ROLES},
                chosen=run.data.tags.get("chosen", ""),
            )
        )
    return results


def _tags(model: str, version: str, which: str) -> dict[str, str]:
    return {"model.version": str(version), "model.name": model, "finetune": which}
