"""Ctrl-C and SIGTERM: a run stops between two steps, once it has saved itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Python drops an exception that a handler raises inside a callback of the interpreter, as imports have some.
# The signal is kept here, for the run to find before its first step.
_raised: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal stopped the run; the message says how to go on. What handles Ctrl-C handles this too.

    Attributes:
        status: the exit status that shells give such a process, 128 + the signal's number.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + number


class StopRequest:
    """Whether a signal has asked for a stop: its `number`, or None."""

    number: int | None = None


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Only note a SIGINT or SIGTERM that arrives within; a second one acts as it did before."""
    request = StopRequest()
    request.number = _raised[-1] if _raised else None

    def note(number: int, frame: object) -> None:
        request.number = number
        restore()

    restore = _handle((signal.SIGINT, signal.SIGTERM), note)
    try:
        yield request
    finally:
        restore()


@contextmanager
def sigterm_raises(message: str) -> Iterator[None]:
    """Let SIGTERM raise `Stopped` within, as SIGINT raises KeyboardInterrupt anyway."""

    def stop(number: int, frame: object) -> None:
        _raised.append(number)
        raise Stopped(number, message)

    restore = _handle((signal.SIGTERM,), stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        # Native code, as Ray's, has put its own in the place of `Stopped`.
        if _raised and not isinstance(interrupt, Stopped):
            raise Stopped(_raised[-1], message) from None
        raise
    finally:
        restore()
        _raised.clear()


def _handle(numbers: tuple[int, ...], handler: Callable[[int, Any], None]) -> Callable[[], None]:
    """Install a handler, and return what puts the earlier ones back.

    A signal that the process ignores stays ignored. Outside the main thread, where Python allows no handlers,
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = {number: signal.getsignal(number) for number in numbers}
    # None is a handler that Python did not install and could not put back.
    ours = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in ours:
        signal.signal(number, handler)

    def restore() -> None:
        for number, old in ours.items():
            signal.signal(number, old)

    return restore
