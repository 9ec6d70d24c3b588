"""Measured figures that are recorded as JSON in ``docs/results``."""

from __future__ import annotations

import json

from detrkit.models.registry import REGISTRY
from generator.headers import ROOT
from generator.recorded import recorded
from generator.tables import table

__all__ = ["SECTIONS"]

CLASSES = ("RBC", "WBC", "Platelets")


def grid() -> str:
    """Cells of ``benchmarks/data_efficiency.py`` at 320 px: the registered models, most images first."""
    lines = (ROOT / "docs/results/data_efficiency.jsonl").read_text(encoding="utf-8").splitlines()
    cells = [cell for cell in map(json.loads, lines) if cell["model"] in REGISTRY and cell["size"] == 320]
    cells.sort(key=lambda cell: (-cell["images"], cell["metrics"]["AP"]))
    rows = []
    for cell in cells:
        numbers = [cell["metrics"]["AP"], cell["metrics"]["AP50"], *(cell["per_class"][name] for name in CLASSES)]
        rows.append([f"`{cell['model']}`", str(cell["images"]), *(f"{number:.3f}" for number in numbers)])
    return table(["model", "training images", "AP", "AP50", *CLASSES], rows)


VARIANTS = {"det": "detection alone", "dense": "masks multiplied out", "lazy": "masks of detrkit"}


def training_masks() -> str:
    """What masks add to the peak of a training step (``benchmarks/mask_training.py``)."""
    rows = []
    for row in recorded("mask_training_cpu")["rows"]:
        added = ["–", "–"] if row["variant"] == "det" else [f"{row['added_MiB']:,.0f}", f"{row['of_dense']:.2g}"]
        rows.append([str(row["queries"]), VARIANTS[row["variant"]], f"{row['peak_MiB']:,.0f}", *added])
    return table(["queries", "step", "peak, MiB", "masks add, MiB", "of multiplied out"], rows)


def positions() -> str:
    """What is left of a token's own place, layer by layer (``benchmarks/dape_probe.py positions``)."""
    lines = (ROOT / "docs/results/dape_ablation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for probe in (row for row in map(json.loads, lines) if row["kind"] == "positions"):
        moved = [f"{shift['change']:.2f}" for shift in probe["shifts"]] or ["–"] * len(probe["layers"])
        for index, (layer, change) in enumerate(zip(probe["layers"], moved, strict=True)):
            where = f"before layer {index + 1}" if index + 1 < len(moved) else "memory"
            rows.append([probe["name"], where, f"{layer['error']:.3f}", f"{layer['explained']:.3f}", change])
    return table(["detector", "tokens", "error of the place", "explained", "codes moved"], rows)


GRADIENTS = (
    "sampling_offsets",
    "attention_weights",
    "value_proj",
    "ref_point_head",
    "encoder.code.proj",
    "encoder.code.up",
)


def gradients() -> str:
    """Gradients of one training step relative to the weights, by part (``benchmarks/dape_probe.py gradients``)."""
    lines = (ROOT / "docs/results/dape_ablation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for probe in (row for row in map(json.loads, lines) if row["kind"] == "gradients"):
        shares = [probe["groups"].get(group) for group in GRADIENTS]
        rows.append([probe["name"], *("–" if share is None else f"{share['of_weight']:.2f}" for share in shares)])
    return table(["detector", *(f"`{group}`" for group in GRADIENTS)], rows)


def variants() -> str:
    """AP of DAPE's variants in runs that were interrupted (``benchmarks/data_efficiency.py``)."""
    runs = sorted(recorded("dape_variants_gpu")["rows"], key=lambda run: (-len(run["curve"]), -run["curve"][-1][1]))
    steps = [step for step, _ in max((run["curve"] for run in runs), key=len)]
    rows = []
    for run in runs:
        found = dict(run["curve"])
        rows.append([f"`{run['model']}`", *(f"{found[step]:.3f}" if step in found else "–" for step in steps)])
    return table(["variant", *(f"AP after {step} steps" for step in steps)], rows)


FORMS = {
    "sines": "linear in sines of the coordinates, as `LowRankRelation`",
    "gated": "linear in these and in sines of the place times smooth gates of the size",
    "mlp": "two layers (256 wide) on sines of the coordinates",
    "mlp_fourier": "two layers (256 wide) on 512 random Fourier features",
}


def relation_forms() -> str:
    """Errors of low-rank factors of several forms, fitted to a full relation (``benchmarks/relation_forms.py``)."""
    lines = (ROOT / "docs/results/relation_forms.jsonl").read_text(encoding="utf-8").splitlines()
    fits = {(row["form"], row["rank"]): row for row in map(json.loads, lines)}
    ranks = sorted({rank for _, rank in fits})
    rows = []
    for form, title in FORMS.items():
        errors = [fits.get((form, rank)) for rank in ranks]
        cells = [f"{row['error']:.3f} / {row['error_unseen']:.3f}" if row else "–" for row in errors]
        rows.append([title, *cells])
    rows.append(["least that the rank allows", *(f"{fits['sines', rank]['least_error']:.3f}" for rank in ranks)])
    return table(["factors", *(f"rank {rank}: boxes fitted / others" for rank in ranks)], rows)


def first_touch() -> str:
    """How soon commands answer and results are scored (``benchmarks/first_touch.py``)."""
    rows = []
    for row in recorded("first_touch_cpu")["rows"]:
        beside = row.get("of_beside")
        peer = ["–", "–"] if beside is None else [f"{row['beside']}: {beside['wall']:.2f} s", f"{row['ratio']:.3g}"]
        rows.append([row["what"], f"{row['wall']:.2f} s", *peer, f"{row['peak'] / 1e6:,.0f} MB"])
    return table(["command", "time", "beside", "times faster", "peak memory"], rows)


def serving() -> str:
    """Answers over HTTP (``examples/serve/load_test.py``)."""
    rows = [
        [str(row["clients"]), f"{row['requests_per_second']:.2f}", f"{row['median_ms']:.0f}", f"{row['p95_ms']:.0f}"]
        for row in recorded("serving_cpu")["rows"]
    ]
    return table(["clients", "answers/s", "median, ms", "95 %, ms"], rows)


def peers() -> str:
    """AP after the same time on the same images (``benchmarks/vs_peers.py``)."""
    rows = []
    for row in recorded("vs_peers_cpu")["rows"]:
        numbers = [f"{row['AP']:.3f}", f"{row['AP50']:.3f}", f"{row['seconds'] / 60:.1f}", str(row["steps"])]
        memory = f"{row['memory_gb']:.1f}"
        rows.append([row["title"], row["weights"], str(row["images"]), *numbers, memory, row["how"]])
    head = ["detector", "backbone from", "images", "AP", "AP50", "minutes", "steps", "memory, GB", "trained with"]
    return table(head, rows)


def scale() -> str:
    """Runs on many GPUs, as ``benchmarks/scale.py plan`` predicts them."""
    rows = []
    for row in recorded("scale")["rows"]:
        numbers = [f"{row['images_per_s']:,.0f}", f"{row['loader_cores']:.1f}", f"{1e3 * row['all_reduce_s']:.1f}"]
        times = [f"{1e3 * row['exposed_s']:.1f}", f"{row['evaluation_s']:,.0f}", f"{row['hours']:,.1f}"]
        rows.append([row["run"], str(row["gpus"]), *numbers, *times, f"{row['memory_MiB'] / 1024:.1f}"])
    sent = ["all-reduce, ms", "of it not hidden, ms"]
    head = ["run", "GPUs", "images/s", "loader cores", *sent, "evaluation, s", "hours", "GB a GPU"]
    return table(head, rows)


def scale_check() -> str:
    """Steps that the same model predicts here, and that were measured (``benchmarks/scale.py check``)."""
    rows = [
        [str(row["processes"]), f"{row['predicted_s']:.3f}", f"{row['measured_s']:.3f}", f"{100 * row['error']:+.1f} %"]
        for row in recorded("scale_cpu")["rows"]
    ]
    return table(["processes", "predicted step, s", "measured step, s", "error"], rows)


SECTIONS = {
    "measured grid on blood cells": grid,
    "memory of a training step with masks": training_masks,
    "positions of harmonised sampling": positions,
    "gradients of harmonised sampling": gradients,
    "variants of sampling, interrupted": variants,
    "forms of factors": relation_forms,
    "first touch": first_touch,
    "answers over HTTP": serving,
    "beside other packages": peers,
    "predicted steps": scale_check,
    "predicted runs": scale,
}
