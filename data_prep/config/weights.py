"""The section ``weights``: how often training reads each genome."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from configs import Section
from data_prep.config.reference import ReferenceConfig

WEIGHTS = "weights"  # the filter of a source that says how its weight follows from its size


class WeightsConfig(Section):
    """``dataset.weights`` says what each choice means."""

    by: Literal["given", "size", "clade"] = "given"
    alpha: float = Field(default=1.0, ge=0, le=1)
    depth: int = Field(default=1, ge=1)

    def check(self, references: Sequence[ReferenceConfig]) -> None:
        """ValueError: by clade, and a reference has none."""
        without = [reference.name for reference in references if not reference.clade]
        if self.by == "clade" and without:
            more = f" and {len(without) - 8} more" * (len(without) > 8)
            raise ValueError(
                "weights.by clade wants a clade of each reference; none is given of "
                f"{', '.join(without[:8])}{more}"
            )

    def filters(self, reference: ReferenceConfig) -> dict[str, Any]:
        """What a source says of its weight; nothing where that is as given."""
        if self.by == "given":
            return {}
        clade = {"clade": "/".join((reference.clade or "").split("/")[: self.depth])}
        own = {"given": reference.weight, "alpha": self.alpha} | (clade if self.by == "clade" else {})
        return {WEIGHTS: own}
