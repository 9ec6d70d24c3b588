"""Draw AP of one or several runs over optimizer steps or minutes as an SVG, and print the points as a table.

python benchmarks/curve.py NAME=runs/NAME/log.jsonl … --out docs/images/curve.svg [--over minutes]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 380, 52, 44, 20, 20
AXES = {"steps": "optimizer steps", "minutes": "minutes"}


@dataclass(frozen=True)
class Point:
    """One evaluation of a run; ``minutes`` of training and evaluation so far, without breaks before a resume."""

    steps: int
    minutes: float
    ap: float
    ap50: float


def read(path: Path) -> list[Point]:
    """Evaluations in the log of a run."""
    points, seconds, last = [], 0.0, 0.0
    for row in map(json.loads, path.read_text().splitlines()):
        seconds += 0.0 if row["event"] in ("start", "resume") else row["time"] - last
        last = row["time"]
        if row["event"] == "eval":
            points.append(Point(row["step"], seconds / 60, row["AP"] or 0.0, row["AP50"] or 0.0))
    return points


def svg(runs: dict[str, list[Point]], axis: str) -> str:
    """The picture: AP as solid lines, AP50 as dashed lines, one colour per run."""
    every = [point for points in runs.values() for point in points]
    last = max((getattr(point, axis) for point in every), default=1)
    top = max((point.ap50 for point in every), default=1.0)
    top = max(0.1, -(-top // 0.1) * 0.1)

    def at(along: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * along / last
        return f"{x:.1f},{HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tenth in range(round(top * 10) + 1):
        (x1, y), (x2, _) = (at(along, tenth / 10).split(",") for along in (0, last))
        parts.append(f'<path d="M{x1},{y}H{x2}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{tenth / 10:.1f}</text>')
    for quarter in range(5):
        along = last * quarter / 4
        x = at(along, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{along:.0f}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{AXES[axis]}</text>')
    for index, (name, points) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        for column, dash in (("ap", ""), ("ap50", ' stroke-dasharray="5 4"')):
            line = " ".join(at(getattr(point, axis), getattr(point, column)) for point in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
            y = TOP + 8 + 17 * (2 * index + (column == "ap50"))
            parts.append(f'<path d="M{LEFT + 12},{y}h26" stroke="{colour}" stroke-width="2"{dash}/>')
            parts.append(f'<text x="{LEFT + 44}" y="{y + 4}">{escape(name)} {column.upper()}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the logs, print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=LOG")
    parser.add_argument("--over", choices=tuple(AXES), default="steps")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    runs = {name: read(Path(path)) for name, path in (run.split("=", 1) for run in args.runs)}
    print("| run | step | minutes | AP | AP50 |\n|---|---|---|---|---|")
    for name, points in runs.items():
        for point in points:
            print(f"| {name} | {point.steps} | {point.minutes:.0f} | {point.ap:.3f} | {point.ap50:.3f} |")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(svg(runs, args.over))


if __name__ == "__main__":
    main()
