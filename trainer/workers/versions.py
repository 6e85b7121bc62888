"""Which versions to work on: the one that is named, or each candidate as it appears."""

from dataclasses import dataclass, field
from typing import Protocol

from configs import ConfigError
from trainer.tracking import names
from trainer.tracking.candidates import MARK, CandidateVersion, alias_of, candidates
from trainer.tracking.registry import Registry


class VersionSource(Protocol):
    """Where a driver gets its versions from. ``watch``: more may come than are pending now."""

    @property
    def watch(self) -> bool: ...

    def pending(self) -> list[str]:
        """The versions that have come and were not taken yet, as models:/NAME/VERSION."""

    def take(self, uri: str) -> None:
        """The version ``uri``, which was pending, is in work."""


@dataclass
class Versions:
    """The versions that ``--model`` means, each once, in their order.

    With ``watch`` and the alias candidate: every version that is or was a candidate, so that none is missed
    between two looks. Of those that are there at the first look, the ones of the newest one's run: what is
    done of them costs nothing. With another alias: each version that has it when we look.
    """

    registry: Registry
    model_uri: str
    watch: bool
    _taken: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        try:
            self.name, self._alias, _ = names.model_reference(self.model_uri)
        except ValueError as fault:
            raise ConfigError(str(fault)) from fault
        if self.watch and not self._alias:
            raise ConfigError(
                f"--watch takes each version that gets an alias, and {self.model_uri} names one version; "
                f"write models:/{self.name}@{MARK}, or leave --watch out"
            )

    def pending(self) -> list[str]:
        """The versions that have come and were not taken yet, as models:/NAME/VERSION."""
        if not self.watch:
            numbers = [int(self.registry.version(self.model_uri).version)]
        elif self._alias == MARK:
            numbers = self._candidates()
        else:
            found = alias_of(self.registry, self.name, self._alias)
            numbers = [] if found is None else [found]
        return [f"models:/{self.name}/{number}" for number in numbers if number not in self._taken]

    def take(self, uri: str) -> None:
        """The version ``uri``, which was pending, is in work."""
        self._taken.add(int(uri.rpartition("/")[2]))

    def _candidates(self) -> list[int]:
        found = candidates(self.registry, self.name)
        if not self._taken:
            found = at_first(found)
        else:
            found = [one for one in found if one.number > max(self._taken)]
        return [one.number for one in found]


def at_first(found: list[CandidateVersion]) -> list[CandidateVersion]:
    """Of the candidates that are there when we begin, those of the newest one's run."""
    if not found:
        return []
    newest = found[-1]
    return [one for one in found if one is newest or (newest.run_id and one.run_id == newest.run_id)]
