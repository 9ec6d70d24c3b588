"""Packages whose modules are imported on first use, so that commands start without what they do not need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

__all__ = ["import_on_use"]


def import_on_use(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """The ``__getattr__`` of a package.

    Args:
        package: its ``__name__``.
        homes: module -> the names of the package that it has.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def attribute(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(f"{package}.{home_of[name]}"), name)

    return attribute
