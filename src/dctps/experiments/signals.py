"""Ctrl-C and SIGTERM: a run stops between two steps, once it has saved itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# An exception that a handler raises inside a callback of the interpreter, as imports have some, is dropped
# there. The signal it stood for is kept here, for the run to find before its first step.
_raised: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal stopped the run; the message says how to go on.

    A `KeyboardInterrupt`, so that what handles Ctrl-C handles this too.

    Attributes:
        status: the exit status that shells give such a process, 128 + the signal's number.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + number


class StopRequest:
    """Whether a signal has asked for a stop.

    Attributes:
        number: of that signal, or None.
    """

    number: int | None = None


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Only note a SIGINT or SIGTERM that arrives within; a second one acts as it did before.

    A signal that the process ignores stays ignored. Outside the main thread, where Python allows no handlers,
    nothing is noted and nothing changes.
    """
    request = StopRequest()
    request.number = _raised[-1] if _raised else None
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # None is a handler that Python did not install and could not put back.
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in ours.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        restore()

    for number in ours:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


@contextmanager
def sigterm_raises(message: str) -> Iterator[None]:
    """Let SIGTERM raise `Stopped` within, as SIGINT raises KeyboardInterrupt anyway; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        _raised.append(number)
        raise Stopped(number, message)

    before = signal.getsignal(signal.SIGTERM)
    if before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        # Native code, as Ray's, has put its own in the place of `Stopped`.
        if _raised and not isinstance(interrupt, Stopped):
            raise Stopped(_raised[-1], message) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        _raised.clear()
