"""Signals for what a test starts. A suite in the background of a script, or under nohup, ignores some of
them."""

import signal

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hear() -> None:
    """For ``preexec_fn``: the child hears what tells it to stop, also where these tests do not."""
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
