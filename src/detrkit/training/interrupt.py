"""Ctrl-C, SIGTERM and SIGHUP (a closed terminal): finish the step, write the checkpoint, then stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupt", "Interrupted"]

SAME_SIGNAL_SECONDS = 2.0
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal and left a checkpoint that ``--resume`` continues."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class Interrupt:
    """Context in which the first signal only sets :attr:`requested`; a later Ctrl-C stops at once.

    Launchers forward a Ctrl-C that every process has already received from the terminal, so a second signal shortly
    after the first is ignored. Forked loader workers inherit the handler, so Ctrl-C in a terminal does not kill them.
    A signal that is ignored (SIGHUP under nohup) stays ignored.

    Args:
        answer: what to say on stderr at the first signal, since the step may take long; None: nothing.
    """

    def __init__(self, answer: Callable[[], str] | None = None) -> None:
        self.signum = 0
        self._answer, self._process = answer, os.getpid()
        self._time = 0.0
        self._immediate = False
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | signal.Handlers | None] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.signum != 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader worker: its parent decides
        again = self.requested and signum == signal.SIGINT and time.monotonic() - self._time > SAME_SIGNAL_SECONDS
        if self._immediate or again:
            _say("stopping")
            raise Interrupted(signum, "stopped at once; --resume continues from the last checkpoint")
        if not self.requested:
            self.signum, self._time = signum, time.monotonic()
            if self._answer is not None:
                _say(self._answer())

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # other threads cannot install handlers
            for signum in _SIGNALS:
                if signum in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(signum) != signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Context in which the first signal stops at once, because there is nothing to save."""
        self._immediate = True
        try:
            if self.requested:
                raise Interrupted(self.signum, "stopped; --resume continues from the last checkpoint")
            yield
        finally:
            self._immediate = False


def _say(text: str) -> None:
    """Print a line from a signal handler, which must not use the buffers that it may have interrupted."""
    try:
        os.write(2, f"\n{text}\n".encode())
    except OSError:  # the terminal is closed: what is printed from now on must not end the run
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
