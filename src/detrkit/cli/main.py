"""The ``detrkit`` command: registers the commands, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed at run time, 2 unusable arguments or input, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from detrkit import __version__
from detrkit.cli import data, score, weights
from detrkit.cli.demo import demo_command
from detrkit.cli.env import env_command
from detrkit.cli.evaluate import eval_command
from detrkit.cli.models import models_command
from detrkit.cli.predict import PredictCommand, predict_command
from detrkit.cli.train import train_command
from detrkit.errors import DetrkitError

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="detrkit",
    help="Detection transformers that train on your data.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo_command)
app.command("predict", cls=PredictCommand)(predict_command)
app.command("train")(train_command)
app.command("eval")(eval_command)
app.add_typer(score.app, name="score")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.command("models")(models_command)
app.command("env")(env_command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"detrkit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (in any position).")] = False,
) -> None:
    """Detection transformers that train on your data."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and leaves the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    words = list(arguments)
    own = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in own
    words = [word for word in own if word != "--debug"] + words[len(own) :]
    try:
        with _warnings_as_lines():
            code = app(words, prog_name="detrkit", standalone_mode=False)
            return code if isinstance(code, int) else 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "interrupted", debug=False)
        return int(getattr(stop, "exit_code", 130))
    except BrokenPipeError:  # the reader of our output went away, as in `detrkit models | head -1`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except DetrkitError as error:
        _complain(str(error), debug=debug)
        return error.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # of click, which some versions of typer carry a copy of
            return _complain_about_usage(error, debug=debug)
        hint = "" if debug else " (rerun with --debug for the traceback)"
        _complain(f"{type(error).__name__}: {error}{hint}", debug=debug)
        return 1


def _complain_about_usage(error: Any, *, debug: bool) -> int:
    """Words that fit no command or option: one line that names the command whose help tells more."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "detrkit"
    message = error.format_message().replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, where typer has not printed it already
        message = "a command is missing"
    _complain(f"{message.rstrip('.')} (see {command} --help)", debug=debug)
    return 2


def _complain(message: str, *, debug: bool) -> None:
    """One line on stderr; with ``--debug`` the traceback before it."""
    if debug:
        traceback.print_exc()
    print(f"detrkit: error: {' '.join(message.splitlines())}", file=sys.stderr)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Warnings of detrkit itself are one line without file and line number."""
    shown, package = warnings.formatwarning, str(Path(__file__).resolve().parents[1])

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if str(Path(filename).resolve()).startswith(package):
            return f"detrkit: warning: {' '.join(str(message).splitlines())}\n"
        return shown(message, category, filename, lineno, line)

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = shown
