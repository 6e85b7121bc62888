"""A webhook of MLflow's server, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.process import signals
from configs import redact
from trainer.tracking.mlflow_client import TrackError, track_errors
from trainer.tracking.registry import Registry

_NAME = "cluster-finetune-watch"
_EVENTS = ("model_version_alias.created", "model_version_tag.set")


@contextmanager
def announcing(registry: Registry, url: str) -> Iterator[None]:
    """MLflow's server calls ``url`` whenever a version gets an alias or a tag.

    One that a killed process has left for the same URL is replaced.

    Raises:
        TrackError: the server offers no webhooks, or does not take this URL.
    """
    place = f"webhook {redact(url)} at MLflow {redact(registry.uri)}"
    with track_errors(place):
        for old in registry.client.list_webhooks():
            if (old.name, old.url) == (_NAME, url):
                registry.client.delete_webhook(old.webhook_id)
        made = registry.client.create_webhook(_NAME, url, list(_EVENTS))
    try:
        yield
    finally:
        with signals.delayed(), suppress(TrackError), track_errors(place):
            registry.client.delete_webhook(made.webhook_id)
