"""Figures of the source code of one or more checkouts, side by side: sizes, configuration, imports, executed code.

python benchmarks/house.py OLD NEW --json house.json

- Lines, files, longest, median: modules below src/.
- Lines with `Any`: like `git grep -wn Any -- 'src/*.py' | wc -l`.
- Imports that go up or sideways: imports of a package that is not below the importing one (ORDER), at most one per line
  and package. Imports inside functions and for type checking count too.
- Configuration fields: of every laptop-sized model, in total and per part of the configuration.
- Functions in a DAPE training forward: distinct functions of models/ that run when `dape_lite0` gets two images with
  targets, without the common `Detector.forward`. A comprehension counts as a function on Python 3.11 but not on 3.12,
  so compare figures of the same Python version.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from interleaved import environment

# Packages from top to bottom: a package may import the packages below its own line.
ORDER = (
    {"cli", "app", "__init__", "__main__"},
    {"training", "report"},
    {"evaluation"},
    {"inference", "export"},
    {"weights"},
    {"drawing"},
    {"metrics"},
    {"models", "data", "losses", "config"},
    {"nn"},
    {"ops"},
    {"structures"},
    {"files"},
    {"errors"},
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
TRACED = "dape_lite0"
Figures = dict[str, Any]


def imports(path: Path, package: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import in a module, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            own = [package.name, *path.relative_to(package).parts[:-1]]
            prefix = own[: len(own) - node.level + 1] if node.level else []
            base = ".".join([*prefix, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def wrong_imports(package: Path) -> list[str]:
    """Imports of a package that is not below the importing one, as ``file:line package -> package``."""
    found: dict[str, None] = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room not in LEVEL:
            raise SystemExit(f"room '{room}' of {package} has no place in ORDER of {__file__}")
        if room in ORDER[0]:
            continue
        for name, line in imports(path, package):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if top != package.name or not rest or target.startswith("__version"):
                continue
            if not ((package / target).is_dir() or (package / f"{target}.py").is_file()):
                target = "__init__"  # a public name
            if target != room and LEVEL.get(target, 0) <= LEVEL[room]:
                found[f"{path.relative_to(package)}:{line} {room} -> {target}"] = None
    return list(found)


def source_figures(package: Path) -> Figures:
    """Figures from reading the source files."""
    paths = sorted(package.rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8").splitlines() for path in paths}
    sizes = {path: len(lines) for path, lines in texts.items()}
    longest = max(paths, key=sizes.__getitem__)
    names = Counter(path.name for path in paths if path.name not in ("__init__.py", "__main__.py"))
    wrong = wrong_imports(package)
    return {
        "lines": sum(sizes.values()),
        "files": len(paths),
        "longest file": f"{sizes[longest]} ({longest.relative_to(package)})",
        "median file": statistics.median(sizes.values()),
        "lines with Any": sum(bool(re.search(r"\bAny\b", line)) for lines in texts.values() for line in lines),
        "imports that go up or sideways": len(wrong),
        "file names that occur twice": sum(count > 1 for count in names.values()),
        "details": {"imports": wrong, "names": sorted(name for name, count in names.items() if count > 1)},
    }


# --------------------------------------------------------------------- in a process that imports the checkout's package


def config_fields(config: Any) -> dict[str, int]:
    """Part of a configuration -> number of its fields; "flat" counts the fields outside all parts."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    parts = {name: len(fields(value)) for name, value in values.items() if is_dataclass(value)}
    flat = len(values) - len(parts)
    return ({"flat": flat} if flat else {}) | parts


def functions(name: str) -> list[str]:
    """Distinct functions of models/ that run in one training forward pass, as ``file function``."""
    from compare_checkouts import NUM_CLASSES, batch

    import detrkit
    from detrkit.losses import build_criterion

    folder = str(Path(detrkit.__file__).parent / "models") + "/"
    seen: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder) and code.co_qualname != "Detector.forward":
            seen[f"{code.co_filename.removeprefix(folder)} {code.co_qualname}"] = None

    model = detrkit.create_model(name, num_classes=NUM_CLASSES).train()
    images, mask, targets = batch(0)
    prepared = build_criterion(model.config).prepare(targets)
    sys.setprofile(note)
    model(images, mask, prepared)
    sys.setprofile(None)
    return sorted(seen)


def runtime_figures() -> Figures:
    """Figures from running the package."""
    import torch

    import detrkit

    torch.set_num_threads(1)
    with torch.device("meta"):
        configs = {name: config_fields(detrkit.create_model(name).config) for name in detrkit.list_models("*_lite0")}
    return {"configs": configs, "functions": functions(TRACED)}


# -------------------------------------------------------------------------------------------------------------- report


def extent(numbers: list[int]) -> str:
    """A range of numbers as text."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def figures(checkout: Path) -> Figures:
    """All figures of a checkout."""
    found = source_figures(checkout / "src" / "detrkit")
    command = [sys.executable, __file__, "--worker", str(checkout)]
    process = subprocess.run(command, env=environment(checkout), stdout=subprocess.PIPE, text=True, check=True)
    ran = json.loads(process.stdout.splitlines()[-1])
    configs, executed = ran["configs"], ran["functions"]
    parts = dict.fromkeys(part for config in configs.values() for part in config)
    found["details"] |= ran
    totals = extent([sum(config.values()) for config in configs.values()])
    by_part = ", ".join(f"{part} {extent([config.get(part, 0) for config in configs.values()])}" for part in parts)
    files = {name.split()[0] for name in executed}
    return found | {
        "configuration fields of a model": f"{totals} ({by_part})",
        "functions in a DAPE training forward": f"{len(executed)} in {len(files)} files",
    }


def title(checkout: Path) -> str:
    """Name and commit of the folder."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f"{checkout.resolve().name} {described}".strip()


def main() -> None:
    """Print the table; write JSON with the names behind the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(runtime_figures()))
        return
    columns = {title(checkout): figures(checkout) for checkout in options.checkouts}
    print(f"| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name in (name for name in next(iter(columns.values())) if name != "details"):
        print(f"| {name} | {' | '.join(str(found[name]) for found in columns.values())} |")
    if options.json:
        options.json.write_text(json.dumps(columns, indent=1) + "\n")


if __name__ == "__main__":
    main()
