"""A doorbell that MLflow's webhook rings: whoever rings, we only look whether there is a new version."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from configs import ConfigError, redact
from trainer.core.console import say
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.registry import Registry
from trainer.tracking.webhook import announcing


class Doorbell:
    """``rung()`` says once whether somebody has rung since."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> None:
        self._event.set()

    def rung(self) -> bool:
        was = self._event.is_set()
        self._event.clear()
        return was


@contextmanager
def doorbell(registry: Registry, url: str | None) -> Iterator[Doorbell]:
    """A bell that MLflow rings at ``url``, on whose port this process listens; silent without one.

    Where the server offers no webhooks a warning says so, and looking at intervals is all there is.

    Raises:
        ConfigError: no process could listen there.
    """
    bell = Doorbell()
    if url is None:
        yield bell
        return
    with listening(url, bell), ExitStack() as stack:
        try:
            stack.enter_context(announcing(registry, url))
        except TrackError as fault:
            say(f"warning: {fault}; new versions are looked for at intervals alone")
        yield bell


@contextmanager
def listening(url: str, bell: Doorbell) -> Iterator[None]:
    """Calls of ``url`` ring the bell during the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1 << 20))
            bell.ring()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing: it would be a line on the terminal for each call."""

    try:
        found = urlsplit(url)
        if found.scheme not in ("http", "https") or not found.port:
            raise ValueError("a URL with a port is needed, such as https://HOST:8443/")
        server = ThreadingHTTPServer(("", found.port), Handler)
    except (ValueError, OSError) as fault:
        raise ConfigError(f"--webhook {redact(url)}: {fault}") from fault
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
