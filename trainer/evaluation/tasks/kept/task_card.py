"""A fine-tuned model in words: the card beside its files and the description of its version."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.tasks.config import ROLES
from trainer.evaluation.tasks.kept.task_model import TaskRecord
from trainer.evaluation.tasks.kinds.registry import KINDS
from trainer.tracking import markdown

Scores = Mapping[str, float]  # val/NAME and test/NAME


def card(record: TaskRecord, baselines: Mapping[str, Sequence[Scores]]) -> str:
    """README.md; ``baselines``: by mode, the scores of each seed on the same rows."""
    head = (
        "---\nlibrary_name: dna-distill\ntags: [dna, fine-tuned]\n---\n"
        f"# {record.task}, from {record.encoder} version {record.encoder_version}\n\n"
    )
    return head + describe(record, baselines, uri="models:/NAME@champion")


def describe(record: TaskRecord, baselines: Mapping[str, Sequence[Scores]], *, uri: str) -> str:
    """Markdown: what the model does, its scores beside the baselines, its data, and how to use it at
    ``uri``."""
    kind = f"{record.kind} with the labels {', '.join(record.labels)}" if record.labels else record.kind
    how = (
        "the whole network, fine-tuned"
        if record.mode == "finetune"
        else "a linear model on the frozen encoder"
    )
    lines = [
        f"Predicts {record.task} ({kind}) from DNA sequences. It comes from {record.encoder} version "
        f"{record.encoder_version} and is {how}, of seed {record.seed}: the best on dev of all seeds and "
        "modes of this encoder.",
        "",
        _table(record, baselines),
        "",
        _data(record),
        "",
        f"Chosen on dev: {record.chosen}. It was scored in {record.precision}; it predicts in fp32 unless "
        f"told otherwise. Input: {record.preprocessing}.",
        "",
        "```",
        f"python -m trainer.predict --model {uri} --input sequences.fa --output predictions.parquet",
        f"mlflow models serve -m {uri} --env-manager local",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _table(record: TaskRecord, baselines: Mapping[str, Sequence[Scores]]) -> str:
    """Of every metric the score on dev and test: this model, then means over the seeds of each mode."""
    metrics = KINDS[record.kind].metrics
    columns = [
        (f"{split}/{metric.name}", f"{word} {metric.heading}")
        for metric in metrics
        for split, word in (("val", "dev"), ("test", "test"))
    ]
    rows: list[tuple[str, Sequence[Scores]]] = [("**this model**", [record.scores])]
    rows += [
        (f"{mode}, mean of {len(found)}" if len(found) > 1 else mode, found)
        for mode, found in baselines.items()
    ]
    return markdown.table(
        ["", *(heading for _, heading in columns)],
        [
            [name, *(f"{sum(each[key] for each in scores) / len(scores):.4f}" for key, _ in columns)]
            for name, scores in rows
        ],
    )


def _data(record: TaskRecord) -> str:
    rows = ", ".join(f"{role} {record.rows[role]:,}" for role in ROLES if role in record.rows)
    files = {role: uri for role in ROLES if (uri := record.config.get(role))}
    return f"Rows: {rows}. Files: {', '.join(f'{role} `{_text(uri)}`' for role, uri in files.items())}."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
