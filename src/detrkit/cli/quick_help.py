"""``--help`` without the parts of rich that it does not use: they take a third of its time.

typer's help imports ``rich.markdown``, for help texts in Markdown, and ``rich.traceback``, for tracebacks in colours.
This program has neither, so typer gets a name in their place; whoever imports the modules afterwards gets them.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["prepare_help"]

_UNUSED = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}


def prepare_help() -> None:
    """Import what typer needs to show help in plain words."""
    missing = {name: class_name for name, class_name in _UNUSED.items() if name not in sys.modules}
    for name, class_name in missing.items():
        module = ModuleType(name)
        setattr(module, class_name, type(class_name, (), {}))
        sys.modules[name] = module
    try:
        import typer.rich_utils  # noqa: F401
    except ImportError:  # of another version, which takes more from these modules and imports them itself
        sys.modules.pop("typer.rich_utils", None)
    finally:
        for name in missing:
            del sys.modules[name]
