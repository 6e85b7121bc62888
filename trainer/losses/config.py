"""The config section ``loss``: a section for each loss of LOSSES, and what they need of the others."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import model_validator
from torch import nn

from configs.registry import Composed
from configs.section import Section
from trainer.losses.registry import LOSSES
from trainer.losses.term import LossConfig, LossTerm
from trainer.views.config import Views


class LossSection(Section):
    """What the whole section can do; its fields are those of LOSSES."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its values: the class is composed anew where it is read."""
        return loss_section, (self.model_dump(),)

    @model_validator(mode="after")
    def _some(self) -> "LossSection":
        if not self.weights():
            raise ValueError(
                f"every loss has weight 0; at least one of {', '.join(type(self).model_fields)} must be "
                "above 0"
            )
        return self

    def weights(self) -> dict[str, float]:
        """The losses in use: name -> weight."""
        return {name: config.weight for name, config in self._in_use().items()}

    def terms(self) -> list[LossTerm[Any, Any]]:
        """The losses in use."""
        return [LOSSES[name](config) for name, config in self._in_use().items()]

    @property
    def needs_soft_mask(self) -> bool:
        """Whether windows must bring the soft mask of the reference."""
        return any(config.needs_soft_mask for config in self._in_use().values())

    @property
    def needs_track(self) -> bool:
        """Whether windows must bring the weights of their letters."""
        return any(config.needs_track for config in self._in_use().values())

    def faults(self, views: Views, *, global_batch: int) -> list[str]:
        """What the losses in use need and do not get: a line each, with the key."""
        in_use = self._in_use()
        found = [line for c in in_use.values() for line in c.faults(views, global_batch=global_batch)]
        readers = [name for name, kind in LOSSES.items() if kind.reads_crops]
        if views.crops.number and not in_use.keys() & set(readers):
            those = " or ".join(f"loss.{name}" for name in readers)
            found.append(f"views.crops.number: only {those} reads local windows, and its weight is 0")
        return found

    def _in_use(self) -> dict[str, LossConfig]:
        sections = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: section for name, section in sections.items() if section.weight > 0}


_COMPOSED = Composed(lambda: {name: kind.Config for name, kind in LOSSES.items()}, base=LossSection)
Loss = Annotated[LossSection, _COMPOSED]


def loss_section(values: Any = None) -> LossSection:
    """The section of ``values`` (a mapping, or a section already); without any, of the defaults."""
    section = _COMPOSED.validate({} if values is None else values)
    assert isinstance(section, LossSection), "composed on it"
    return section


def projection_heads(terms: Sequence[LossTerm[Any, Any]], hidden_size: int) -> dict[str, nn.Module]:
    """The heads that the losses need, by the loss's name, initialised from torch's generator."""
    heads = {term.name: term.head(hidden_size) for term in terms}
    return {name: head for name, head in heads.items() if head is not None}
