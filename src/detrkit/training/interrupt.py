"""Ctrl-C and SIGTERM: finish the step, write the checkpoint, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupt", "Interrupted"]


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal and left a checkpoint that ``--resume`` continues."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class Interrupt:
    """While entered, the first SIGINT or SIGTERM only sets :attr:`requested`; a second one stops at once.

    Loader workers that are forked meanwhile inherit the handler, so Ctrl-C in a terminal does not kill them.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._immediate = False
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """A signal came."""
        return self.signum != 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._immediate or self.requested:
            raise Interrupted(signum, "stopped at once; the last checkpoint stands")
        self.signum = signum

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # others may not install handlers
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside, the first signal stops at once: the checkpoint is already written."""
        self._immediate = True
        try:
            if self.requested:
                raise Interrupted(self.signum, "stopped; the last checkpoint stands")
            yield
        finally:
            self._immediate = False
