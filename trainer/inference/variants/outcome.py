"""What a table of scores holds, in sentences."""

from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa

from trainer.inference.variants.alleles import OK
from trainer.inference.variants.picture import Collector
from trainer.inference.variants.windows import MISFITS


def brief(status: str) -> str:
    """A status without what it says of the one variant."""
    return status.partition(":")[0].partition(",")[0]


class Outcome:
    """What was written: counts of statuses, and what a picture needs."""

    def __init__(self, collector: Collector | None = None) -> None:
        self.collector = collector
        self._statuses: Counter[str] = Counter()

    def watched(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """``tables``, each counted as it comes."""
        for table in tables:
            self._statuses.update(map(brief, table["status"].to_pylist()))
            if self.collector:
                self.collector.add(table)
            yield table

    @property
    def rows(self) -> int:
        return self._statuses.total()

    @property
    def scored(self) -> int:
        return self._statuses[OK]

    def sentences(self) -> Iterator[str]:
        """How many variants have no scores, and why."""
        others = [(status, count) for status, count in self._statuses.most_common() if status != OK]
        misfits = [each for each in others if each[0] in MISFITS]
        if misfits:
            total = sum(count for _, count in misfits)
            yield (
                f"{total:,} do not fit the reference, and have no scores ({_counted(misfits)}); is it "
                "another assembly?"
            )
        if rest := [each for each in others if each[0] not in MISFITS]:
            yield f"no scores for {_counted(rest)}"


def _counted(statuses: list[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} × {status}" for status, count in statuses)
