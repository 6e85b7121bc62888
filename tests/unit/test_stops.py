"""Signals that tell a process to stop: heard, or waiting for what must not be left half-done."""

import signal

import pytest

from cluster.process import exits, stops


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_every_signal_to_stop_is_heard(signal_handlers: None, number: int, code: int) -> None:
    assert exits.exit_code(lambda: signal.raise_signal(number), resumable=True) == code


def test_a_hangup_that_nohup_ignores_stays_ignored(signal_handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert exits.exit_code(lambda: signal.raise_signal(signal.SIGHUP), resumable=True) == 0


def test_signals_wait_for_what_must_not_be_left_half_done(signal_handlers: None) -> None:
    done = []

    def work() -> None:
        with stops.wait():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            done.append("half")
        done.append("more")

    assert exits.exit_code(work, resumable=True) == 75
    assert done == ["half"]

    def twice() -> None:
        with stops.wait():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("not reached")

    assert exits.exit_code(twice, resumable=True) == 130, "a second Ctrl-C is heard at once"
    assert done == ["half"]
    with stops.wait():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
