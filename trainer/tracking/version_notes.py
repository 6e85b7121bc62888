"""What is learned of a registered version after it was made: tags, and a section of its description."""

from collections.abc import Mapping

from configs import redact
from trainer.tracking.mlflow_client import track_errors
from trainer.tracking.registry import Registry


def annotate(
    registry: Registry, model: str, version: str, *, tags: Mapping[str, str], heading: str, text: str
) -> None:
    """Set ``tags`` of a version, and the section ``heading`` of its description to ``text``.

    Raises:
        TrackError: MLflow refuses, or does not answer.
    """
    with track_errors(f"registered model {model} version {version} at {redact(registry.uri)}"):
        for key, value in tags.items():
            registry.client.set_model_version_tag(model, version, key, redact(value))
        before = registry.client.get_model_version(model, version).description or ""
        registry.client.update_model_version(model, version, with_section(before, heading, redact(text)))


def with_section(description: str, heading: str, text: str) -> str:
    """A markdown ``description`` whose section ``heading`` is ``text``; other sections stay as they are."""
    section = f"## {heading}\n{text}\n"
    before, mark, rest = f"\n{description}".partition(f"\n## {heading}\n")
    _, next_mark, after = rest.partition("\n## ") if mark else ("", "", "")
    following = f"\n## {after}" if next_mark else ""
    beginning = f"{before.strip()}\n\n" if before.strip() else ""
    return f"{beginning}{section}{following}"
