"""Whether the network may be used: ``--offline``, ``DETRKIT_OFFLINE`` and ``HF_HUB_OFFLINE`` forbid it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["is_offline", "no_addresses", "off_the_network"]

_OWN, _HUB = "DETRKIT_OFFLINE", "HF_HUB_OFFLINE"
_YES = {"1", "ON", "YES", "TRUE"}


def no_addresses() -> bool:
    """Whether no address at all may be opened, also none that the user gives: ``--offline`` or ``DETRKIT_OFFLINE``."""
    return os.environ.get(_OWN, "").upper() in _YES


def is_offline() -> bool:
    """Whether nothing may be fetched by itself (weights by name, hub, ImageNet weights); ``HF_HUB_OFFLINE`` counts."""
    return no_addresses() or os.environ.get(_HUB, "").upper() in _YES


@contextlib.contextmanager
def off_the_network() -> Iterator[None]:
    """Forbid the network inside the block, here and in processes started there."""
    before = {name: os.environ.get(name) for name in (_OWN, _HUB)}
    os.environ.update({_OWN: "1", _HUB: "1"})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
