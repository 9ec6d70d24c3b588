"""Store the results of a section of gpu.sh: one line of JSON with the data of all files that it wrote.

python3 benchmarks/gpu_section.py SECTIONS.jsonl NAME EXIT_CODE SECONDS FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LIMIT = 124  # exit code of `timeout`; 137 if it had to kill the process


def read_data(path: Path) -> Any:
    """The value of a JSON file, or the values of a JSON-lines file; incomplete ones are left out."""
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
    """The record of a section."""
    outcome = "passed" if code == 0 else "out of time" if code in (LIMIT, 137) else "failed"
    files = {path.name: read_data(path) for path in sorted(folder.glob("*.json*"))}
    return {"section": name, "outcome": outcome, "exit_code": code, "seconds": seconds, "files": files}


def main() -> None:
    """Append the record and print a summary."""
    out, name, code, seconds, folder = sys.argv[1:]
    row = section(name, int(code), int(seconds), Path(folder))
    with open(out, "a") as file:
        file.write(json.dumps(row) + "\n")
    written = ", ".join(
        f"{file} ({len(found)} lines)" if isinstance(found, list) else file for file, found in row["files"].items()
    )
    print(f"== {name}: {row['outcome']} after {seconds} s; {written or 'no figures'}")


if __name__ == "__main__":
    main()
