"""The command line as a whole: imports, exit codes, error messages."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import detrkit
from detrkit.cli import main as cli
from detrkit.errors import DataError, RunError

SOURCE = Path(detrkit.__file__).resolve().parents[1]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "120"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """A function that makes `detrkit env` raise an error."""

    def install(error: BaseException) -> None:
        def fail() -> Any:
            raise error

        monkeypatch.setattr("detrkit.cli.env.environment", fail)

    return install


# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["score", "coco", "--help"], ["--version"]])
def test_help_does_not_load_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom detrkit.cli.main import run\n"
        f"code = run({arguments!r})\nprint('torch' in sys.modules, code, file=sys.stderr)"
    )
    done = python("-c", code)
    assert done.stderr.split() == ["False", "0"]


def test_help_flows() -> None:
    """The line ends of a docstring are those of the source, not of a terminal."""
    pending = [cli.app]
    while pending:
        app = pending.pop()
        pending += [group.typer_instance for group in app.registered_groups if group.typer_instance is not None]
        for command in app.registered_commands:
            assert command.help, command.name
            assert "\n" not in command.help.replace("\n\n", ""), command.name


def test_public_names_exist_and_unknown_names_do_not() -> None:
    for name in detrkit.__all__:
        assert getattr(detrkit, name) is not None, name
    assert set(detrkit.__all__) <= set(dir(detrkit))
    assert {"import_module", "TYPE_CHECKING", "annotations"}.isdisjoint(dir(detrkit))
    contract = "list_models create_model load_official to_official save load Predictor train evaluate Detections Target"
    assert set(contract.split()) <= set(detrkit.__all__)
    assert detrkit.models.create_model is detrkit.create_model
    with pytest.raises(AttributeError, match="module 'detrkit' has no attribute 'nothing'"):
        _ = detrkit.nothing  # type: ignore[attr-defined]  # the error under test


def test_names_for_type_checkers_equal_those_at_run_time() -> None:
    """The imports under TYPE_CHECKING equal the names of __getattr__."""
    import ast

    tree = ast.parse(Path(detrkit.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == detrkit._MODULE_OF
    assert {*typed, "__version__"} == set(detrkit.__all__)


# --- exit codes and messages ------------------------------------------------------------------------------------------


def test_python_m_equals_the_command() -> None:
    version = python("-m", "detrkit", "--version")
    assert (version.returncode, version.stdout.strip()) == (0, f"detrkit {detrkit.__version__}")
    wrong = python("-m", "detrkit", "predicd")
    assert wrong.returncode == 2
    assert "predicd" in wrong.stderr
    assert wrong.stdout == ""
    missing = python("-m", "detrkit", "score", "coco", "--gt", "none.json", "--results", "none.json")
    assert missing.returncode == 2
    assert missing.stderr == "detrkit: error: none.json: no such ground truth file\n"


def test_all_commands_are_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    help_text = capsys.readouterr().out
    for name in ("demo", "predict", "train", "eval", "score", "data", "models", "env"):
        assert f" {name} " in help_text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nonsense"], "No such option: --nonsense (see detrkit --help)"),
        (["predicd"], "No such command 'predicd'"),
        (["models", "a", "b"], "(see detrkit models --help)"),
        (["score", "coco"], "Missing option '--gt' (see detrkit score coco --help)"),
        (["predict"], "(see detrkit predict --help)"),
        (["predict", "x.jpg", "--threshold", "2"], "Invalid value for '--threshold': "),
        (["eval", "--split", "foo"], "'foo' is not one of 'train', 'val', 'test' (see detrkit eval --help)"),
    ],
)
def test_usage_errors_are_exit_code_2_and_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("detrkit: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("group", ["data", "score"])
def test_a_group_alone_shows_its_help(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([group]) == 2
    captured = capsys.readouterr()
    assert f"detrkit {group} [OPTIONS] COMMAND" in captured.out
    assert captured.err == f"detrkit: error: a command is missing (see detrkit {group} --help)\n"


@pytest.mark.parametrize(("error", "code"), [(DataError("a.json: bad"), 2), (RunError("disk is\nfull"), 1)])
def test_our_errors_are_one_line(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    failing(error)
    assert cli.run(["env"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"detrkit: error: {' '.join(str(error).splitlines())}\n"
    assert captured.out == ""


def test_unexpected_errors_are_one_line_and_a_hint(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ZeroDivisionError("division by [bold]zero"))
    assert cli.run(["env"]) == 1
    expected = "detrkit: error: ZeroDivisionError: division by [bold]zero (rerun with --debug for the traceback)\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("words", [["--debug", "env"], ["env", "--debug"]])
def test_debug_shows_the_traceback(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    failing(DataError("a.json: bad"))
    assert cli.run(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("detrkit: error: a.json: bad\n")


def test_debug_behind_two_dashes_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["predict", "--", "--debug"]) == 2
    assert capsys.readouterr().err == "detrkit: error: --debug: no such image or folder\n"


def test_ctrl_c_is_exit_code_130(failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyboardInterrupt())
    assert cli.run(["env"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_main_leaves_with_the_exit_code() -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0


def test_a_closed_pipe_is_quiet() -> None:
    """As in `detrkit models | head -1`."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    with subprocess.Popen([sys.executable, "-m", "detrkit", "--help"], **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert err == b""


def test_own_warnings_are_one_line_and_others_are_unchanged(
    failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn() -> dict[str, Any]:
        warnings.warn_explicit("two\nlines", UserWarning, str(SOURCE / "detrkit" / "x.py"), 1)
        warnings.warn_explicit("of others", UserWarning, "/elsewhere/y.py", 7)
        return {}

    monkeypatch.setattr("detrkit.cli.env.environment", warn)
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *a, **k: sys.stderr.write(warnings.formatwarning(*a[:4])))
        assert cli.run(["env"]) == 0
    err = capsys.readouterr().err
    assert "detrkit: warning: two lines\n" in err
    assert "/elsewhere/y.py:7: UserWarning: of others" in err
    assert warnings.formatwarning is before
