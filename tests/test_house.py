"""Rules of the code base: allowed imports, file sizes, type ignores, a light import, one version everywhere."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "detrkit"
MODULES = sorted(SOURCE.rglob("*.py"))

MAX_LINES = 400
MAX_TYPE_IGNORES = 20

# AGPL packages, and packages that compile at installation.
FORBIDDEN = {
    "albumentations",
    "detectron2",
    "detrex",
    "lightly_train",
    "mmcv",
    "mmdet",
    "mmengine",
    "ultralytics",
}

# Package -> packages that it may import besides itself. Imports flow one way: data and metrics do not depend on models,
# models not on recipes or the trainer, weights not on the use of a model; training may evaluate but not predict.
FLOOR = {
    "structures",
    "errors",
    "files",
    "on_use",
    "collection",
    "terminal",
    "console",
    "bars",
    "ranges",
    "devices",
    "backends",
    "offline",
    "side_by_side",
}
MAY_IMPORT = {
    "errors": set(),
    "on_use": set(),
    "files": {"errors"},
    "collection": set(),
    "terminal": set(),
    "console": {"terminal"},
    "bars": {"console"},
    "ranges": set(),
    "offline": set(),
    "side_by_side": set(),
    "devices": {"errors"},
    "backends": {"errors"},
    "structures": {"errors", "files", "on_use"},
    "ops": FLOOR,
    "nn": FLOOR | {"ops"},
    "data": FLOOR,
    "drawing": FLOOR | {"data"},
    "metrics": FLOOR | {"data"},  # COCO files are read in one place
    "report": FLOOR | {"data", "metrics", "drawing"},  # no torch: what it reads was written by a run
    "losses": FLOOR | {"ops", "nn"},
    "models": FLOOR | {"ops", "nn"},
    "runtime": FLOOR | {"data"},  # no torch: exported models run without it
    "weights": FLOOR | {"ops", "nn", "models", "runtime"},
    "hub": FLOOR | {"models", "data", "metrics", "report", "weights"},
    "config": FLOOR,
    "inference": FLOOR | {"ops", "losses", "models", "data", "weights", "drawing", "runtime"},
    "evaluation": FLOOR | {"models", "data", "metrics", "weights", "config", "inference", "runtime"},
    "export": FLOOR | {"ops", "nn", "losses", "models", "data", "weights", "inference", "evaluation", "runtime"},
    "training": FLOOR
    | {"ops", "nn", "models", "losses", "data", "metrics", "weights", "config", "evaluation", "report"},
}
# Top-level packages, which may import all others.
TOP = {"cli", "facade", "__init__", "__main__"}
# Convenience methods of a type may import upwards inside a function, so that importing the type does not.
LAZY_EXCEPTIONS = {("structures", "drawing")}


def project() -> dict[str, Any]:
    """The ``[project]`` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def requirements() -> list[str]:
    """All declared dependencies, including extras."""
    extras = project()["optional-dependencies"].values()
    return [*project()["dependencies"], *(line for lines in extras for line in lines)]


def room_of(path: Path) -> str:
    """The first part of a module's path below detrkit, without ``.py``."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _is_type_checking(node: ast.If) -> bool:
    return "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(dotted name, inside a function?, line) of every executed import, without imports for type checking."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and _is_type_checking(child):
                for other in child.orelse:
                    yield from walk(other, lazy)
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, lazy, child.lineno
            elif isinstance(child, ast.ImportFrom):
                package = ["detrkit", *path.relative_to(SOURCE).parts[:-1]]
                prefix = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                base = ".".join(part for part in (prefix, child.module) if part)
                for alias in child.names:
                    yield f"{base}.{alias.name}", lazy, child.lineno
            else:
                yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def test_every_package_has_import_rules() -> None:
    rooms = {room_of(path) for path in MODULES}
    assert rooms, f"no modules below {SOURCE}"
    assert rooms <= set(MAY_IMPORT) | TOP, "a new package needs a line in MAY_IMPORT"


def test_imports_flow_one_way() -> None:
    wrong = []
    for path in MODULES:
        room = room_of(path)
        if room in TOP:
            continue
        for name, lazy, line in imports_of(path):
            if not name.startswith("detrkit."):
                continue
            target = name.split(".")[1]
            is_room = target in MAY_IMPORT or target in TOP
            allowed = not is_room or target == room or target in MAY_IMPORT[room]
            if not (allowed or (lazy and (room, target) in LAZY_EXCEPTIONS)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_import_check_finds_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``imports_of`` finds plain, relative and lazy imports, but no imports for type checking."""
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    module = tmp_path / "nn" / "attention.py"
    module.parent.mkdir()
    module.write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import torch\n"
        "from ..models import detr\n"
        "from .position import sine\n"
        "if TYPE_CHECKING:\n"
        "    from detrkit.training import trainer\n"
        "def late():\n"
        "    from detrkit.data import loader\n",
        encoding="utf-8",
    )
    found = {(name, lazy) for name, lazy, _ in imports_of(module)}
    assert {
        ("torch", False),
        ("detrkit.models.detr", False),
        ("detrkit.nn.position.sine", False),
        ("detrkit.data.loader", True),
    } <= found
    assert not any("trainer" in name for name, _ in found)


def test_no_forbidden_dependency() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        for name, _, line in imports_of(path)
        if name.split(".")[0] in FORBIDDEN
    ]
    assert not wrong, "\n".join(wrong)
    names = {re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("-", "_") for requirement in requirements()}
    assert names, "no dependencies declared"
    assert not names & FORBIDDEN


def test_dependencies_have_no_upper_cap() -> None:
    """Only lower bounds: the current releases of torch and related packages must always be installable.

    But for pytest, which no user installs: with its 9.2 pytest-xdist ignores groups of tests.
    """
    capped = [line for line in requirements() if any(mark in line for mark in ("<", "==", "~=", "@", "!="))]
    assert [line.partition(">")[0] for line in capped] == ["pytest"]


def test_file_names_are_unique() -> None:
    """Exceptions: a data format and its protocol, a command and the module that it calls."""
    rooms: dict[str, set[str]] = {}
    for path in MODULES:
        if path.name not in ("__init__.py", "__main__.py"):
            rooms.setdefault(path.stem, set()).add(path.parent.relative_to(SOURCE).as_posix())
    twice = {name: places - {"cli"} for name, places in rooms.items() if len(places) > 1}
    same_noun = {name: {"data/formats", "metrics"} for name in ("cityscapes", "coco", "lvis")}
    assert {name: places for name, places in twice.items() if len(places) > 1} == same_noun


def test_public_names_have_one_meaning() -> None:
    """No two modules define a public function or class with the same name, except the functions of data formats."""
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path.relative_to(SOURCE).as_posix())
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    assert {name for name in twice if not all(place.startswith("data/formats/") for place in twice[name])} == set()


def test_files_are_replaced_in_one_module() -> None:
    """Only files.py uses temporary files and renames, besides a run's last/ (two files) and resumable downloads."""
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in MODULES
        if re.search(r"os\.(replace|rename)\(|tempfile\.", path.read_text(encoding="utf-8"))
    }
    assert users == {"files.py", "training/checkpoint.py", "weights/published/download.py"}


def test_one_default_model() -> None:
    from detrkit.config import Recipe
    from detrkit.models.presets import DEFAULT_MODEL

    assert Recipe().model.name == DEFAULT_MODEL
    assert (SOURCE / "assets" / f"{DEFAULT_MODEL}.safetensors").is_file()


def test_files_stay_small() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in sizes.items() if lines > MAX_LINES}


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_type_ignores_are_few_and_explained() -> None:
    """At most 20 in the whole repository, each with its error code and a reason in a comment."""
    ignores = [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for folder in ("src", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in _comments(path)
        if re.match(r"#\s*type:\s*ignore", text)
    ]
    assert len(ignores) <= MAX_TYPE_IGNORES, ignores
    unexplained = [place for place, text in ignores if not re.match(r"#\s*type:\s*ignore\[[\w, -]+\]\s+#\s*\w+", text)]
    assert not unexplained, "write `# type: ignore[code]  # reason`: " + ", ".join(unexplained)


def test_public_modules_have_docstrings() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not bare, f"no module docstring: {bare}"


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_is_light() -> None:
    """``import detrkit`` loads no other part of detrkit, and only small modules of the standard library."""
    new = _python("import sys; before = set(sys.modules); import detrkit; print(*(set(sys.modules) - before))").split()
    assert [name for name in new if name.startswith("detrkit")] == ["detrkit"]
    outside = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
    assert outside == {"detrkit"}
    slow = {"asyncio", "dataclasses", "email", "importlib.metadata", "inspect", "json", "logging", "pathlib", "urllib"}
    assert not slow & set(new)


def test_scoring_starts_at_once() -> None:
    """``import detrkit.metrics`` loads neither torch nor the formats of data sets and what they read with."""
    new = set(_python("import sys, detrkit.metrics; print(*sys.modules)").split())
    assert not {"detrkit.data.formats", "scipy", "torch", "yaml"} & new


def test_one_version_everywhere() -> None:
    import detrkit

    assert detrkit.__version__ == project()["version"]
    assert f"version: {project()['version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {project()['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_public_names_exist() -> None:
    """Every name in ``detrkit.__all__`` exists and has a docstring."""
    import detrkit

    assert {"create_model", "list_models", "load", "save", "load_official", "to_official", "Predictor", "train"} <= set(
        detrkit.__all__
    )
    for name in detrkit.__all__:
        value = getattr(detrkit, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), f"detrkit.{name} has no docstring"


def test_continuous_integration_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert "make test" in text


@pytest.mark.parametrize("target", ["install", "demo", "test", "test-all", "lint", "bench"])
def test_make_targets_exist(target: str) -> None:
    """``make -n`` resolves every target without running anything."""
    result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
