"""Ablation of DAPE. DAPE is a reconstruction from the published description, so the effect of every part must be
measured. The AP of every row comes from the grid:

python benchmarks/data_efficiency.py run --data blood_cells=DIR --models ablation --percent 100 --seeds 0 1 2

All other figures come from this script:

python benchmarks/dape_ablation.py cost [--device cuda] [--size 512 512]    memory and time of a training step
python benchmarks/dape_ablation.py fit [--checkpoint RUN]                   low-rank factors fitted to a full relation
python benchmarks/dape_ablation.py spectrum --checkpoint RUN [--data DIR]   rank of a trained relation; AP if truncated
python benchmarks/dape_ablation.py permute --checkpoint RUN [--data DIR]    AP with permuted learned query content
python benchmarks/dape_ablation.py report docs/results/dape_ablation.jsonl --grid docs/results/dape_ablation_grid.jsonl

Results are appended to `--out`; existing results are not measured again. RUN is a training folder or a weight file, DIR
a data folder (default: the training data of RUN).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data_efficiency import GROUPS, TITLES, VARIANTS, at_quarter, device_name, format_cell, read
from drawn_scores import difference
from relation_rank import RANKS, TruncatedRelation, centred, energy, fit_errors
from torch import Tensor
from training_cost import training_step

import detrkit
from detrkit.nn.relation import PositionRelation
from detrkit.weights.find import find_checkpoint

BASE = "relation_detr_lite0"
STANDARD = "dape_rank16"  # low-rank relation, nothing sampled: what sampling is compared with
# The published form of the full relation, which keeps all tensors for the backward pass; only its cost differs.
UPSTREAM = "upstream"


@dataclass(frozen=True)
class Results:
    """Rows of a JSON-lines file; the first keys of a row identify the measurement."""

    path: Path

    def has(self, what: dict[str, Any]) -> bool:
        """Whether there is a row for this measurement."""
        return any(what.items() <= row.items() for row in self.rows(what["kind"]))

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """All rows of a kind."""
        return [row for row in read(self.path) if row["kind"] == kind]

    def add(self, what: dict[str, Any], **measured: Any) -> None:
        """Append a row and print it."""
        row = {**what, **measured, "torch": torch.__version__, "detrkit": detrkit.__version__}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


# ------------------------------------------------------------------------------------------------- memory and time


def switches(row: str) -> dict[str, Any]:
    """Options of a DAPE preset for a row of the ablation."""
    if row in (BASE, UPSTREAM):
        return {"sampling": "standard", "relation": "full"}
    return VARIANTS[row][1] if row in VARIANTS else {}


def cost(args: argparse.Namespace) -> None:
    """Measure one training step of every row, each in its own process because the peak belongs to the process."""
    results = Results(args.out)
    setting = {
        "model": args.model,
        "options": json.loads(args.options),
        "size": list(args.size),
        "objects": args.objects,
        "device": args.device,
        "precision": args.precision,
        "threads": args.threads,
    }
    failed = []
    for row in args.rows:
        what = {"kind": "cost", "row": row, **setting}
        if not results.has(what):
            command = [sys.executable, __file__, "step", json.dumps(what), str(args.repeats), str(args.out)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
            if subprocess.run(command, env=environment).returncode:
                failed.append(row)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def step(args: argparse.Namespace) -> None:
    """Measure one row in this process."""
    what = json.loads(args.what)
    torch.manual_seed(0)
    model: Any = detrkit.create_model(what["model"], **what["options"], **switches(what["row"]))
    if what["row"] == UPSTREAM:
        model.decoder.relation.rows = None
    setting = {key: what[key] for key in ("size", "objects", "device", "precision")}
    Results(args.out).add(what, **training_step(model, **setting, repeats=args.repeats), hardware=device_name())


# ------------------------------------------------------------------------------------------- fit to a full relation


def fit(args: argparse.Namespace) -> None:
    """Fit low-rank factors to a full relation on random boxes: one with random weights, and a trained one if given."""
    results = Results(args.out)
    relations: list[tuple[dict[str, Any], int, PositionRelation]] = []
    for seed in args.seeds:
        torch.manual_seed(seed)
        relations.append(({"relation": "random weights"}, seed, PositionRelation(num_heads=8)))
        if args.checkpoint is not None:
            relations.append(
                ({"relation": name_of(args), "weights": digest(args)}, seed, full_relation(load_model(args)))
            )
    for source, seed, full in relations:
        what = {"kind": "fit", **source, "seed": seed, "boxes": args.boxes}
        missing = [rank for rank in args.ranks if not results.has({**what, "rank": rank})]
        for rank, errors in fit_errors(full, missing, args.boxes, seed) if missing else ():
            results.add({**what, "rank": rank}, **errors)


# ------------------------------------------------------------------------------------------------- a trained detector


def load_model(args: argparse.Namespace) -> Any:
    """Load the detector of ``--checkpoint``."""
    return detrkit.load(find_checkpoint(args.checkpoint))


def name_of(args: argparse.Namespace) -> str:
    """Name of the detector in the results."""
    return args.name or Path(args.checkpoint).name


def digest(args: argparse.Namespace) -> str:
    """Hash of the weights, since names may be reused."""
    return hashlib.sha256(find_checkpoint(args.checkpoint).read_bytes()).hexdigest()[:12]


def full_relation(model: Any) -> PositionRelation:
    """The full position relation of a detector."""
    relation = getattr(model.decoder, "relation", None)
    if not isinstance(relation, PositionRelation):
        sys.exit(f"{model.name} has no full position relation: train one with relation=full, e.g. relation_detr_lite0")
    return relation


def score_change(args: argparse.Namespace, change: str, alter: Callable[[Any], None]) -> None:
    """Record the AP of the detector after a change."""
    data = str(args.checkpoint if args.data is None else args.data)
    what = {"kind": "change", "name": name_of(args), "weights": digest(args), "data": Path(data).name, "change": change}
    results = Results(args.out)
    if not results.has(what):
        model = load_model(args)
        alter(model)
        metrics = detrkit.evaluate(model, data, device=args.device)["metrics"]
        found = {key: metrics[key] for key in ("AP", "AP50", "AP75")}
        results.add(what, **found, hardware=device_name())


def unchanged(model: Any) -> None:
    """Leave a detector unchanged."""


def spectrum(args: argparse.Namespace) -> None:
    """Record the spectrum of a trained full relation on the boxes in its decoder, and the AP of truncated relations."""
    data = str(args.checkpoint if args.data is None else args.data)
    what = {"kind": "spectrum", "name": name_of(args), "weights": digest(args), "data": Path(data).name}
    what["images"] = args.images
    results = Results(args.out)
    biases: list[Tensor] = []

    def observe_biases(model: Any) -> None:
        wanted = args.images * (len(model.decoder.layers) - 1)
        observe = lambda bias: biases.append(bias.float().cpu()) if len(biases) < wanted else None  # noqa: E731
        model.decoder.relation = TruncatedRelation(full_relation(model), None, observe)

    if not results.has(what):
        model = load_model(args)
        observe_biases(model)
        detrkit.evaluate(model, data, device=args.device)
        whole, inner = [energy(bias) for bias in biases], [energy(centred(bias)) for bias in biases]
        mean = {
            name: {rank: statistics.fmean(row[rank] for row in rows) for rank in rows[0]}
            for name, rows in (("energy", whole), ("energy_centred", inner))
        }
        results.add(what, **mean, queries=biases[0].shape[-1], matrices=sum(bias.shape[1] for bias in biases))

    def truncate(rank: int) -> Callable[[Any], None]:
        def alter(model: Any) -> None:
            model.decoder.relation = TruncatedRelation(full_relation(model), rank)

        return alter

    score_change(args, "none", unchanged)
    for rank in (0, *RANKS):
        score_change(args, f"relation of rank {rank}", truncate(rank))


def permute(args: argparse.Namespace) -> None:
    """Record the AP after a permutation of the learned query content over the ranks of the proposals."""

    def permute_content(seed: int) -> Callable[[Any], None]:
        def alter(model: Any) -> None:
            if not hasattr(model, "tgt_embed"):
                sys.exit(f"{model.name} has no learned content of queries (tgt_embed) to permute")
            weight = model.tgt_embed.weight.data
            order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))
            weight.copy_(weight[order].clone())

        return alter

    score_change(args, "none", unchanged)
    for seed in args.seeds:
        score_change(args, f"content permuted, seed {seed}", permute_content(seed))


# ------------------------------------------------------------------------------------------------------------- report


def report(args: argparse.Namespace) -> None:
    """Print all tables that have results, as Markdown."""
    results = Results(args.results)
    ablation(read(args.grid))
    cost_tables(results.rows("cost"))
    fit_table(results.rows("fit"))
    for row in results.rows("spectrum"):
        print(f"\nSpectrum of the relation of {row['name']} on {row['images']} images of {row['data']}:\n")
        print("| rank | energy | energy without row means |\n|---|---|---|")
        for rank in (rank for rank in row["energy"] if int(rank) < row["queries"]):
            print(f"| {rank} of {row['queries']} | {row['energy'][rank]:.3f} | {row['energy_centred'][rank]:.3f} |")
    for (name, data), group in grouped(results.rows("change"), "name", "data").items():
        print(f"\n{name} on {data}, changed after training:\n\n| change | AP | AP50 |\n|---|---|---|")
        for row in group:
            print(f"| {row['change']} | {row['AP'] or 0:.3f} | {row['AP50'] or 0:.3f} |")


def grouped(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows grouped by some keys, in order of first appearance."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def ablation(rows: list[dict[str, Any]]) -> None:
    """Print the ablation for every data set and size: AP at the end without and with NMS and at a quarter, the
    difference to low-rank relation without sampling, doubles, and memory; columns without a figure are left out."""
    rows = [row for row in rows if row["model"] in GROUPS["ablation"]]
    for (data, size, steps), group in grouped(rows, "data", "size", "iterations").items():
        cells = {model: [row for row in group if row["model"] == model] for model in GROUPS["ablation"]}
        base = cells[STANDARD]
        columns = {
            "AP / AP50": format_cell,
            "AP at a quarter": lambda found: f"{statistics.fmean(at_quarter(row)[1] for row in found):.3f}",
            "with NMS": after_nms,
            "difference": lambda found, base=base: difference(found, base, "plain"),
            "difference with NMS": lambda found, base=base: difference(found, base, "nms"),
            "doubles": doubles,
            "memory, GB": memory,
        }
        lines = {
            TITLES[model]: {title: column(found) for title, column in columns.items()}
            for model, found in cells.items()
            if found
        }
        titles = [title for title in columns if any(line[title] != "–" for line in lines.values())]
        print(f"\n**{data}**, {group[0]['images']} images, {steps} steps at {size} px\n")
        print(f"| relation, sampling | {' | '.join(titles)} |")
        print("|---" * (1 + len(titles)) + "|")
        for name, line in lines.items():
            print(f"| {name} | {' | '.join(line[title] for title in titles)} |")


def after_nms(found: list[dict[str, Any]]) -> str:
    """AP / AP50 with NMS, means over seeds."""
    scores = [row["scores"]["nms"] for row in found if "scores" in row]
    return (
        " / ".join(f"{statistics.fmean(one[key] for one in scores):.3f}" for key in ("AP", "AP50")) if scores else "–"
    )


def doubles(found: list[dict[str, Any]]) -> str:
    """Second detections per object, without and with NMS."""
    scores = [row["scores"] for row in found if "scores" in row]
    means = [statistics.fmean(one[which]["doubles"] for one in scores) for which in ("plain", "nms") if scores]
    return " / ".join(f"{mean:.2f}" for mean in means) or "–"


def memory(found: list[dict[str, Any]]) -> str:
    """Peak memory of the training process, mean over seeds."""
    peaks = [row["memory_gb"] for row in found if "memory_gb" in row]
    return f"{statistics.fmean(peaks):.2f}" if peaks else "–"


def cost_tables(rows: list[dict[str, Any]]) -> None:
    """Print memory and time of a training step, a table for every setting."""
    key = lambda row: json.dumps([row[x] for x in ("model", "options", "size", "precision", "hardware", "threads")])  # noqa: E731
    for _, measured in itertools.groupby(sorted(rows, key=key), key=key):
        cost_table(list(measured))


def cost_table(rows: list[dict[str, Any]]) -> None:
    """Print memory and time of rows measured with the same setting."""
    first, titles = rows[0], {UPSTREAM: "Relation-DETR, everything kept", **TITLES}
    where = first["hardware"] if first["device"] != "cpu" else f"{first['hardware']}, {first['threads']} thread(s)"
    queries = " + ".join(f"{count} {name.replace('_', '-')}" for name, count in first["queries"].items())
    size = " x ".join(map(str, first["size"]))
    print(f"\n{first['model']}, {size} pixels, {queries} queries, {first['precision']}, {where}\n")
    peak = "peak of the process" if first["device"] == "cpu" else "peak of the GPU"
    print(f"| relation, sampling | parameters | kept for backward, MiB | {peak}, MiB | s per step |")
    print("|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: list(titles).index(row["row"])):
        measured = f"{row['kept_MiB']:,.0f} | {row['peak_MiB']:,.0f} | {row['seconds']:.2f} |"
        print(f"| {titles[row['row']]} | {row['parameters'] / 1e6:.2f} M | {measured}")


def fit_table(rows: list[dict[str, Any]]) -> None:
    """Print relative errors by rank, as means over seeds."""
    for (relation, number), group in grouped(rows, "relation", "boxes").items():
        seeds = len({row["seed"] for row in group})
        print(f"\nFit to a full relation ({relation}), {number} random boxes, mean of {seeds} draws:\n")
        print("| rank | lowest possible error | ours, boxes fitted | ours, other boxes | energy of the relation |")
        print("|---|---|---|---|---|")
        for (rank,), found in sorted(grouped(group, "rank").items()):
            mean = {
                key: statistics.fmean(row[key] for row in found)
                for key in ("least_error", "error", "error_unseen", "energy", "energy_centred")
            }
            print(
                f"| {rank} | {mean['least_error']:.3f} | {mean['error']:.3f} | {mean['error_unseen']:.3f} | "
                f"{mean['energy']:.3f} ({mean['energy_centred']:.3f} without row means) |"
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("--out", type=Path, default=Path("runs/dape_ablation.jsonl"))
    trained = argparse.ArgumentParser(add_help=False)
    trained.add_argument("--checkpoint", required=True)
    trained.add_argument("--name", help="name in the results; default: the name of its folder or file")
    trained.add_argument("--data", help="default: its training data")
    trained.add_argument("--device", default="auto")

    one = commands.add_parser("cost", parents=[out], help="memory and time of a training step")
    rows = [UPSTREAM, *GROUPS["ablation"]]
    one.add_argument("--rows", nargs="+", default=rows, choices=rows, metavar="ROW")
    one.add_argument("--model", default="dape_r50")
    one.add_argument("--options", default="{}", help="model options as JSON")
    one.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("HEIGHT", "WIDTH"))
    one.add_argument("--objects", type=int, default=20)
    one.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    one.add_argument("--device", default="cpu")
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--repeats", type=int, default=3)
    one.set_defaults(act=cost)
    one = commands.add_parser("step", help="used by cost")
    one.add_argument("what")
    one.add_argument("repeats", type=int)
    one.add_argument("out", type=Path)
    one.set_defaults(act=step)
    one = commands.add_parser("fit", parents=[out], help="low-rank factors fitted to a full relation")
    one.add_argument("--checkpoint")
    one.add_argument("--name")
    one.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    one.add_argument("--boxes", type=int, default=900)
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.set_defaults(act=fit)
    one = commands.add_parser("spectrum", parents=[out, trained], help="rank of a trained full relation")
    one.add_argument("--images", type=int, default=10, help="images for the singular values")
    one.set_defaults(act=spectrum)
    one = commands.add_parser("permute", parents=[out, trained], help="AP after permuting the learned content")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.set_defaults(act=permute)
    one = commands.add_parser("report", help="tables")
    one.add_argument("results", type=Path)
    one.add_argument("--grid", type=Path, default=Path("docs/results/dape_ablation_grid.jsonl"))
    one.set_defaults(act=report)
    args = parser.parse_args()
    args.act(args)


if __name__ == "__main__":
    main()
