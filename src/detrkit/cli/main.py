"""The ``detrkit`` command: registers the subcommands and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed at run time, 2 unusable arguments or input, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from detrkit import __version__
from detrkit.cli.quick_help import flow_help, prepare_help
from detrkit.cli.spellings import option_meant
from detrkit.errors import DetrkitError
from detrkit.offline import off_the_network

__all__ = ["main", "root", "run"]

_COMMANDS = {
    "demo": "demo:demo_command",
    "predict": "predict:predict_command:PredictCommand",
    "train": "train:train_command",
    "eval": "evaluate:eval_command",
    "report": "report:report_command",
    "learning-curve": "learning_curve:learning_curve_command",
    "export": "export:export_command:ExportCommand",
    "bench": "bench:bench_command",
    "score": "score:app",
    "data": "data:app",
    "weights": "weights:app",
    "recipes": "recipes:app",
    "models": "models:models_command",
    "env": "env:env_command",
}
"""Command -> its module, its function or group, and its class if it has one; in the order of ``--help``."""


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app_with(_COMMANDS)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def _app_with(names: Iterable[str]) -> typer.Typer:
    """The app with these commands: to load and to make all of them takes longer than some of them run."""
    made = typer.Typer(
        name="detrkit",
        help="Detection transformers that train on your data.",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback(invoke_without_command=True)(root)
    for name in names:
        place, attribute, *kind = _COMMANDS[name].split(":")
        module = import_module(f"detrkit.cli.{place}")
        command = getattr(module, attribute)
        if isinstance(command, typer.Typer):
            made.add_typer(command, name=name)
        else:
            made.command(name, cls=getattr(module, kind[0]) if kind else None)(command)
    flow_help(made)
    return made


def _version(wanted: bool) -> None:
    if wanted:
        print(f"detrkit {__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (in any position).")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use no network (in any position); DETRKIT_OFFLINE=1 does the same.")
    ] = False,
) -> None:
    """Detection transformers that train on your data."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its exit code."""
    code = run(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()  # at its end Python would look through all objects that there are for cycles
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    words = list(arguments)
    own = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in own
    offline = "--offline" in own
    words = [word for word in own if word not in ("--debug", "--offline")] + words[len(own) :]
    if "" in (word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in own):
        _print_error("an argument is empty (is a variable not set?)", debug=False)
        return 2
    try:
        if not words or not {"--help", "-h"}.isdisjoint(own):
            prepare_help()
        with _warnings_as_lines(), off_the_network() if offline else contextlib.nullcontext():
            code = _app_for(words)(words, prog_name="detrkit", standalone_mode=False)
            return code if isinstance(code, int) else 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as stop:
        _print_error(str(stop) or "interrupted", debug=False)
        return int(getattr(stop, "exit_code", 130))
    except BrokenPipeError:  # the reader of our output has ended, as in `detrkit models | head -1`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except DetrkitError as error:
        _print_error(str(error), debug=debug)
        return error.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # an error of click, or of the copy of click in some versions of typer
            return _print_usage_error(error, debug=debug)
        hint = "" if debug else " (rerun with --debug for the traceback)"
        _print_error(f"{type(error).__name__}: {error}{hint}", debug=debug)
        return 1


def _app_for(words: Sequence[str]) -> typer.Typer:
    """The app with the command that is called; with all where it is none of them."""
    name = next((word for word in words if not word.startswith("-")), None)
    return _app_with([name] if name in _COMMANDS else _COMMANDS)


def _print_usage_error(error: Any, *, debug: bool) -> int:
    """Print a usage error in one line that names the command with ``--help``; returns the exit code."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "detrkit"
    message = error.format_message().replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text, which typer has already printed
        message = "a command is missing"
    if type(error).__name__ == "NoSuchOption":
        option = str(getattr(error, "option_name", ""))
        meant = option_meant(command.rpartition(" ")[2], option)
        message = f"No such option: {option}. Here it is {meant}" if meant else message
    _print_error(f"{message.rstrip('.')} (see {command} --help)", debug=debug)
    return 2


def _print_error(message: str, *, debug: bool) -> None:
    """Print an error in one line on stderr, after its traceback with ``--debug``."""
    from detrkit.terminal import one_line

    if debug:
        traceback.print_exc()
    print(f"detrkit: error: {one_line(message)}", file=sys.stderr)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Format warnings of detrkit as one line without file name and line number."""
    original, package = warnings.formatwarning, str(Path(__file__).resolve().parents[1])

    def short(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if str(Path(filename).resolve()).startswith(package):
            from detrkit.terminal import one_line

            return f"detrkit: warning: {one_line(str(message))}\n"
        return original(message, category, filename, lineno, line)

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = original
