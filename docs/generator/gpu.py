"""Figures of ``benchmarks/gpu.sh`` on one card, recorded in ``docs/results/gpu.json`` with the run of each."""

from __future__ import annotations

from generator.recorded import recorded
from generator.tables import table

__all__ = ["SECTIONS"]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def sampling() -> str:
    """Deformable attention (``benchmarks/ms_deform_attn.py``)."""
    rows = []
    for row in recorded("gpu")["ms_deform_attn"]["rows"]:
        cells = [row["setting"], row["dtype"]]
        for key in ("forward_s", "both_s"):
            cells += [_ms(row["reference"][key]), _ms(row["triton"][key]), f"{row['ratio'][key]:.1f}"]
            cells += [f"{row['rows'][key] / row['triton'][key]:.0%}", f"{row['share_of_floor'][key]:.0%}"]
        rows.append(cells)
    names = ["grid_sample, ms", "Triton, ms", "times faster", "of the accesses", "of a copy"]
    return table(["one call", "values", *names, *(f"with backward: {name}" for name in names)], rows)


def relation() -> str:
    """Attention with the full relation (``benchmarks/relation_attention.py``)."""
    rows = []
    for row in recorded("gpu")["relation_attention"]["rows"]:
        error = "–" if row["error"] is None else f"{row['error']:.1e}"
        times = [_ms(row["forward_s"]), _ms(row["both_s"]), f"{1 / row['time_of_row_wise']:.1f}"]
        rows.append([str(row["run"]), row["form"], row["dtype"], *times, f"{row['kept_MiB']:.1f}", error])
    names = ["forward, ms", "with backward, ms", "times faster than rows", "kept, MiB", "error"]
    return table(["run", "form", "values", *names], rows)


def step() -> str:
    """Training steps (``benchmarks/relation_step.py``)."""
    rows = []
    for row in recorded("gpu")["step"]["rows"]:
        shares = [f"{1 / row['seconds_of_published']:.2f}", f"{row['peak_MiB_of_published']:.2f}"]
        numbers = [f"{1e3 * row['seconds']:.0f}", f"{row['images_per_s']:.1f}", f"{row['peak_MiB']:,.0f}", *shares]
        rows.append([str(row["run"]), row["model"], *numbers, f"{row['busy']:.0%}"])
    names = ["ms", "images/s", "peak, MiB", "times faster", "of the memory", "GPU busy"]
    return table(["run", "step", *names], rows)


def pooling() -> str:
    """RoIAlign (``benchmarks/roi_align.py``)."""
    rows = [
        [row["setting"], f"{1e3 * row['bags_s']:.1f}", f"{1e3 * row['torchvision_s']:.1f}", f"{1 / row['ratio']:.1f}"]
        for row in recorded("gpu")["roi_align"]["rows"]
    ]
    return table(["one decoder layer", "weighted bags, ms", "torchvision, ms", "times faster"], rows)


SECTIONS = {
    "GPU: deformable attention": sampling,
    "GPU: relation": relation,
    "GPU: training steps": step,
    "GPU: RoIAlign": pooling,
}
