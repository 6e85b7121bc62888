"""The versions of a registered model that wait for fine-tuning."""

from dataclasses import dataclass
from typing import Any

from configs import redact
from trainer.tracking.mlflow_client import library, track_errors
from trainer.tracking.registry import Registry

MARK = "candidate"  # the tag of versions that were candidates, and the alias of the newest


@dataclass(frozen=True)
class CandidateVersion:
    """A version: ``marked`` where it has the tag that says that it was a candidate when it was made."""

    number: int
    run_id: str
    marked: bool


def candidates(registry: Registry, model: str) -> list[CandidateVersion]:
    """The versions with alias candidate or tag ``candidate=yes``, oldest first; none where there is no such
    model yet."""
    with track_errors(f"registered model {model} at {redact(registry.uri)}"):
        try:
            aliases = registry.client.get_registered_model(model).aliases
        except library().exceptions.MlflowException as fault:
            if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        found, token = [], None
        while token != "":
            page = registry.client.search_model_versions(_filter(model), page_token=token)
            found += list(page)
            token = page.token or ""
    standing = str(aliases.get(MARK, ""))
    wanted = [one for one in found if one.tags.get(MARK) == "yes" or str(one.version) == standing]
    return sorted((_candidate(one) for one in wanted), key=lambda one: one.number)


def alias_of(registry: Registry, model: str, alias: str) -> int | None:
    """The number of the version that has the alias now, or None."""
    with track_errors(f"registered model {model} at {redact(registry.uri)}"):
        try:
            number = registry.client.get_registered_model(model).aliases.get(alias)
        except library().exceptions.MlflowException as fault:
            if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
    return None if number is None else int(number)


def _candidate(version: Any) -> CandidateVersion:
    return CandidateVersion(int(version.version), version.run_id or "", version.tags.get(MARK) == "yes")


def _filter(model: str) -> str:
    quote = '"' if "'" in model else "'"
    return f"name={quote}{model}{quote}"
