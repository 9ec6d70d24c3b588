"""Training steps and loader beside peers on a CPU, from ``docs/results``."""

from __future__ import annotations

from generator.recorded import recorded
from generator.tables import table

__all__ = ["SECTIONS"]


def _bar(value: float, bar: float | None, *, least: bool) -> str:
    if bar is None:
        return f"{value:.2f}"
    held = value >= bar if least else value <= bar
    return f"{'**' if held else ''}{value:.2f}{'**' if held else ''} ({'≥' if least else '≤'} {bar:g})"


def training_steps() -> str:
    """Rows of ``benchmarks/training_step.py``; a bold ratio holds its bar."""
    rows = []
    for row in recorded("training_step_cpu")["rows"]:
        bars, step, peak = row["bars"], row["step_s"], row["peak_MiB"]
        forward = row.get("forward_s")
        peer = row["peer"] + ("" if row["auxiliary"] else ", last layer's losses alone")
        height, width = row["size"]
        cells = [f"`{row['ours']}`", peer, f"{row['images']} x {height} x {width}", str(row["threads"])]
        cells += [f"{step['old']:.2f} → {step['new']:.2f}", _bar(row["times_faster"]["step"], bars["step"], least=True)]
        if forward is None:
            cells += ["–", "–"]
        else:
            cells.append(f"{forward['old']:.2f} → {forward['new']:.2f}")
            cells.append(_bar(row["times_faster"]["forward"], bars["forward"], least=True))
        cells.append(f"{peak['old']:,.0f} → {peak['new']:,.0f}")
        cells.append(_bar(row["of_the_memory"], bars["memory"], least=False))
        rows.append(cells)
    names = ["step, s", "times faster", "forward, s", "times faster", "peak, MiB", "of the memory"]
    return table(["ours", "peer", "images", "threads", *names], rows)


def loader() -> str:
    """The loader and what was tried for it (``benchmarks/loader.py``)."""
    whole, parts = recorded("loader_cpu")["rows"]
    rows = [["whole image: published", f"{whole['published_ms']:.1f}", "–"]]
    rows.append(["whole image: ours", f"{whole['ours_ms']:.1f}", f"{whole['times_faster']:.2f}"])
    rows += [[name, f"{value:.2f}", "–"] for name, value in parts["ms"].items()]
    return table(["one training image, one thread", "ms", "times faster"], rows)


SECTIONS = {
    "training steps on a CPU": training_steps,
    "loader": loader,
}
