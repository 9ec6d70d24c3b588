"""Draws AP over optimizer steps of one or several runs as an SVG, and prints the points as a table.

python benchmarks/curve.py NAME=runs/NAME/log.jsonl … --out docs/images/curve.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 380, 52, 44, 20, 20
Points = list[tuple[int, float, float]]


def read(path: Path) -> Points:
    """(step, AP, AP50) of every evaluation in a run's log."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["step"], row["AP"] or 0.0, row["AP50"] or 0.0) for row in rows if row["event"] == "eval"]


def svg(runs: dict[str, Points]) -> str:
    """The picture: AP as full lines, AP50 dashed, one colour a run."""
    last = max((point[0] for points in runs.values() for point in points), default=1)
    top = max((point[2] for points in runs.values() for point in points), default=1.0)
    top = max(0.1, -(-top // 0.1) * 0.1)

    def at(step: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return f"{x:.1f},{HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tenth in range(round(top * 10) + 1):
        (x1, y), (x2, _) = (at(step, tenth / 10).split(",") for step in (0, last))
        parts.append(f'<path d="M{x1},{y}H{x2}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{tenth / 10:.1f}</text>')
    for quarter in range(5):
        step = last * quarter // 4
        x = at(step, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">optimizer steps</text>')
    for index, (name, points) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        for column, dash, label in ((1, "", "AP"), (2, ' stroke-dasharray="5 4"', "AP50")):
            line = " ".join(at(point[0], point[column]) for point in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
            y = TOP + 8 + 17 * (2 * index + column - 1)
            parts.append(f'<path d="M{LEFT + 12},{y}h26" stroke="{colour}" stroke-width="2"{dash}/>')
            parts.append(f'<text x="{LEFT + 44}" y="{y + 4}">{escape(name)} {label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Reads the logs, prints the table, writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=LOG")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs = {name: read(Path(path)) for name, path in (run.split("=", 1) for run in args.runs)}
    print("| run | step | AP | AP50 |\n|---|---|---|---|")
    for name, points in runs.items():
        for step, ap, ap50 in points:
            print(f"| {name} | {step} | {ap:.3f} | {ap50:.3f} |")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(svg(runs))


if __name__ == "__main__":
    main()
