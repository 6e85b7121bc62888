"""What a build tells its user at the end."""

from collections.abc import Iterator

from data_prep.config import DataConfig
from data_prep.dataset.build import Built
from data_prep.dataset.growth import Grown
from data_prep.dataset.partner_checks import partner_stats, partner_table_text
from data_prep.shards import SPLITS
from data_prep.split.leakage import table

_SHOWN = 5  # names of assemblies


def _growth(grown: Grown) -> Iterator[str]:
    changes = [
        f"{what} {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' * (len(names) > _SHOWN)}"
        for what, names in (("added", grown.added), ("changed", grown.changed), ("removed", grown.removed))
        if names
    ]
    yield (
        f"the dataset has grown: {'; '.join(changes) or 'the same assemblies'}; {grown.kept_shards} shards "
        "stay as they were, and so does the manifest before"
    )


def summary(built: Built, config: DataConfig) -> Iterator[str]:
    """Lines: warnings first, then what was written or that nothing was to do."""
    for warning in built.warnings:
        yield f"warning: {warning}"
    if not built.fresh:
        yield f"{config.output} holds this very dataset already; nothing to do"
        return
    manifest = built.manifest
    shards = [shard for split in SPLITS for shard in manifest.shards[split]]
    bp, size = sum(shard.bp for shard in shards), sum(shard.bytes for shard in shards)
    parts = ", ".join(f"{split} {manifest.bp(split):,}" for split in SPLITS)
    yield (
        f"{config.output}: {bp:,} bp ({parts}) in {len(shards)} shards, {size / bp:.4f} bytes/bp, "
        f"{built.seconds:.1f} s, {bp / built.seconds / 1e6:.1f} Mbp/s"
    )
    if built.grown:
        yield from _growth(built.grown)
    if built.found_shards:
        yield f"of these, {built.found_shards} shards of an earlier build were there and whole"
    if not manifest.bp("val"):
        yield (
            "warning: nothing is held out; training needs a val split, so name contigs or a fraction in "
            "split.val"
        )
    if built.dropped_blocks or built.empty_records:
        yield (
            f"left out: {built.dropped_blocks} blocks with more N than max_n_fraction "
            f"{config.max_n_fraction:g}, {built.empty_records} empty records"
        )
    if ambiguous := sum(source.iupac_to_n for source in manifest.sources):
        yield f"{ambiguous:,} IUPAC ambiguity letters became N"
    if built.leakage:
        yield table(built.leakage)
    if built.partners:
        yield partner_table_text(partner_stats(built.partners, manifest))
    if built.dropped_bp:
        held_out = manifest.bp("val") + manifest.bp("test") + built.dropped_bp
        yield f"dropped from val and test: {built.dropped_bp:,} of {held_out:,} bp, with split.leakage drop"
