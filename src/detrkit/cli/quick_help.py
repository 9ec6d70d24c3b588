"""``--help`` that flows, without the parts of rich that it does not use: they take a third of its time.

typer's help imports ``rich.markdown``, for help texts in Markdown, and ``rich.traceback``, for tracebacks in colours.
This program has neither, so typer gets a name in their place; whoever imports the modules afterwards gets them.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import typer

__all__ = ["flow_help", "prepare_help"]

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


def flow_help(app: typer.Typer) -> None:
    """Let the help of all commands flow: typer keeps the line ends of a docstring, which are those of the source."""
    for command in app.registered_commands:
        text = command.help or inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            flow_help(group.typer_instance)
