"""Keeps what a section of gpu.sh found: one line of JSON with the content of the files that it wrote.

python3 benchmarks/gpu_section.py SECTIONS.jsonl NAME EXIT_CODE SECONDS FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LIMIT = 124  # what `timeout` ends with, or 137 when it had to kill


def content(path: Path) -> Any:
    """A JSON file, or the lines of a JSON-lines file; what was cut off in the middle is left out."""
    lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    if path.suffix == ".json":
        return found[0] if found else None
    return found


def section(name: str, code: int, seconds: int, folder: Path) -> dict[str, Any]:
    """The line of a section."""
    outcome = "passed" if code == 0 else "out of time" if code in (LIMIT, 137) else "failed"
    files = {path.name: content(path) for path in sorted(folder.glob("*.json*"))}
    return {"section": name, "outcome": outcome, "exit_code": code, "seconds": seconds, "files": files}


def main() -> None:
    """Appends the line and prints a summary of it."""
    out, name, code, seconds, folder = sys.argv[1:]
    row = section(name, int(code), int(seconds), Path(folder))
    with open(out, "a") as file:
        file.write(json.dumps(row) + "\n")
    wrote = ", ".join(
        f"{file} ({len(found)} lines)" if isinstance(found, list) else file for file, found in row["files"].items()
    )
    print(f"== {name}: {row['outcome']} after {seconds} s; {wrote or 'no figures'}")


if __name__ == "__main__":
    main()
