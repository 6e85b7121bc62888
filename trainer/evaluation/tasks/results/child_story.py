"""What the run of one unit of work shows beside its scores: one line, its splits as datasets."""

from collections.abc import Mapping

from trainer.evaluation.tasks.config import ROLES, TaskConfig
from trainer.evaluation.tasks.results.results import Unit
from trainer.tracking.inputs import DatasetInput

_WAYS = {
    "kmer": "a linear model on k-mer counts, the floor without a network",
    "onehot": "a linear model on the letters by position, a floor without a network",
    "probe": "a linear model on frozen embeddings of the encoder",
    "finetune": "the whole encoder trained on the task, from its pretrained weights",
    "scratch": "the same network trained on the task from random weights",
}


def run_name(unit: Unit) -> str:
    """A name that tells the unit's run apart from those of other versions, too."""
    return f"{unit.task} {unit.mode} seed {unit.seed} ({unit.model} v{unit.version})"


def one_line(unit: Unit, rows: Mapping[str, int]) -> str:
    """The description of the unit's run."""
    counts = ", ".join(f"{rows[role]:,} {role}" for role in ROLES if role in rows)
    way = _WAYS.get(unit.mode, unit.mode)
    return f"{unit.task}: {way}; {unit.model} version {unit.version}, seed {unit.seed}; rows {counts}."


def task_inputs(task: TaskConfig, rows: Mapping[str, int], *, digest: str) -> tuple[DatasetInput, ...]:
    """The splits of ``task`` as inputs with the contexts train, dev and test.

    ``digest``: of the rows in use. A split without a file of its own is taken from another, which is named.
    """
    files = {role: getattr(task, role) for role in ROLES}
    other = next(uri for uri in files.values() if uri)
    return tuple(
        DatasetInput(
            name=f"{task.name} {role}",
            digest=digest,
            uri=files[role] or other,
            context=role,
            columns={"sequence": "string", "label": "double" if task.kind == "regression" else "string"},
            profile={"num_rows": rows[role], "kind": task.kind},
        )
        for role in ROLES
        if role in rows
    )
