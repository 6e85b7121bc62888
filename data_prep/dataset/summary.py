"""What a build tells its user at the end."""

from collections.abc import Iterator

from data_prep.config import DataConfig
from data_prep.dataset.build import Built
from data_prep.dataset.families import Divided
from data_prep.dataset.growth import Grown
from data_prep.dataset.partner_checks import partner_stats, partner_table_text
from data_prep.shards import SPLITS
from data_prep.split.leakage import table

_ELSEWHERE = {"val": "train", "test": "train or val"}
_PAIRS = 8  # pairs of assemblies with duplicates
_MUCH = 0.5  # of a held-out split that train has, too
_SHOWN = 5  # names of assemblies


def _growth(grown: Grown) -> Iterator[str]:
    changes = [
        f"{what} {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' * (len(names) > _SHOWN)}"
        for what, names in (("added", grown.added), ("changed", grown.changed), ("removed", grown.removed))
        if names
    ]
    yield (
        f"the dataset has changed: {'; '.join(changes) or 'the same letters, other settings or files'}; "
        f"{grown.kept_shards} shards stay as they were, and so does the manifest before"
    )


def summary(built: Built, config: DataConfig) -> Iterator[str]:
    """Lines: warnings first, then what was written or that nothing was to do."""
    for warning in built.warnings:
        yield f"warning: {warning}"
    if not built.fresh:
        what = "the licences were written down" if built.licensed else "nothing to do"
        yield f"{config.output} holds this very dataset already; {what}"
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
    if built.divided:
        yield from _divided(built.divided, config)
    if built.leakage:
        for pair in built.leakage.pairs:
            if pair.within == "train" and pair.share > _MUCH:
                yield (
                    f"warning: {pair.share:.1%} of {pair.of} also stand in train, so that figures on it tell "
                    "little; hold out the same contigs of all assemblies, or set split.leakage to drop"
                )
        yield table(built.leakage)
    if built.partners:
        yield partner_table_text(partner_stats(built.partners, manifest))
    if built.dropped_bp:
        held_out = manifest.bp("val") + manifest.bp("test") + built.dropped_bp
        yield f"dropped from val and test: {built.dropped_bp:,} of {held_out:,} bp, with split.leakage drop"


def _divided(divided: Divided, config: DataConfig) -> Iterator[str]:
    """What homology and dedup did."""
    if families := divided.families:
        sampled = "" if families.sampled == 1 else f", by {families.sampled:.2g} of all minimisers"
        yield (
            f"homology: {families.families} families of two or more of {families.blocks} blocks, "
            f"the largest of {families.largest_bp:,} bp; {families.alone_bp:,} bp are like no other; "
            f"{families.repeats:,} minimisers are repeats, which link nothing{sampled}"
        )
    for name, split in (divided.splits or {}).items():
        if split.wanted_bp is not None:
            yield (
                f"{name}: {split.drawn_bp:,} of {split.wanted_bp:,} bp wanted, {split.families} families "
                f"whole and {split.cut} cut, for which {split.buffer_bp:,} bp that are like it were dropped "
                "from train"
            )
        yield (
            f"{name}: {split.kept_bp:,} bp are left; {split.trimmed_bp:,} bp were dropped since "
            f"{split.broken / max(1, split.windows):.2%} of its windows had more than "
            f"{config.split.homology.max_shared:.0%} of their minimisers in {_ELSEWHERE[name]}"
        )
    if found := divided.duplicates:
        done = "dropped from train" if config.dedup.mode == "drop" else "only reported"
        unjudged = f"; {found.unjudged} blocks are too short to judge" if found.unjudged else ""
        yield f"dedup: {len(found.spans)} blocks, {found.bp:,} bp, are almost in others, {done}{unjudged}"
        for pair in sorted(found.pairs, key=lambda pair: -pair.bp)[:_PAIRS]:
            yield f"  {pair.blocks} of {pair.assembly}, {pair.bp:,} bp, mostly in {pair.within}"
