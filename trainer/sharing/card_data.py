"""The section of a model card about the data: which genomes, whose letters, under which licences."""

from collections.abc import Sequence

from cluster.storage import store
from trainer.sharing.card_facts import DataFacts
from trainer.tracking import markdown

_MOST_SOURCES = 60  # that a card lists of a dataset


def data(datasets: Sequence[DataFacts]) -> str:
    """A paragraph and a table for each dataset."""
    return "\n\n".join(map(_dataset, datasets)) or "The data are not known here."


def _dataset(facts: DataFacts) -> str:
    weight = f", weight {facts.weight:g}" if facts.weight != 1 else ""
    # A path of the machine that trained tells others nothing but the names of its folders.
    name = store.basename(facts.uri.rstrip("/")) if store.is_local(facts.uri) else facts.uri
    head = f"Dataset `{name}`{weight}, sha256 of its manifest `{facts.digest or 'not known'}`"
    if not facts.sources:
        return f"{head}. What is in it is not known here: {facts.unread}."
    bp = ", ".join(f"{split} {count:,}" for split, count in facts.bp.items())
    held_out = f" Held out for validation: {_some(facts.held_out)}." if facts.held_out else ""
    rows = [
        (
            source.name,
            str(source.contigs),
            f"{source.bp:,}",
            source.licence or "not stated",
            f"`{source.sha256}`",
        )
        for source in facts.sources[:_MOST_SOURCES]
    ]
    more = len(facts.sources) - len(rows)
    table = markdown.table(
        ("genome", "contigs", "bp", "licence", "sha256 of its file, decompressed"), rows, gap=""
    )
    tail = f"\n\nAnd {more} more, in the manifest." if more else ""
    return f"{head}. Bp: {bp}.{held_out}\n\n{table}{tail}"


def _some(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
