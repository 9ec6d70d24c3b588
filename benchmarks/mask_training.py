"""What masks add to the memory of a training step: lazy masks beside all masks multiplied out, in one run.

python benchmarks/mask_training.py [--queries 300 900] [--size 1024] [--objects 20] [--device cpu] [--json FILE]

One step of DINO on one image: forward with denoising queries, matching, losses of all layers, backward. Three variants:
``det``, detection alone; ``dense``, where every mask of every layer is multiplied out once and kept, as in Mask2Former
and MaskDINO; ``lazy``, detrkit's own. The peak is the largest sum of tensors alive at one time, counted at every
operation of the step, so that it does not depend on the allocator; on a GPU it is the allocator's own count. Seconds
are those of the processor on a CPU, summed over threads. The backbone is small and the encoder has one layer: both are
part of ``det``, which is subtracted.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import MIB, timed
from relation import boxes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import detrkit
from detrkit.losses import build_criterion, mask_terms
from detrkit.nn.masks import EmbeddedMasks, sample_points
from detrkit.structures import Target

AT_ONCE = {"det": 0, "dense": 10**6, "lazy": mask_terms._ROWS_AT_ONCE}
"""Matched masks that are compared at a time: dense ones all at once, so that their gradient is made once."""
SETTINGS: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "encoder_layers": 1, "num_classes": 80}


class PeakMemory(TorchDispatchMode):
    """Bytes of the storages that operations make, as long as these live: now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages that are new."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


@dataclass(frozen=True)
class DenseMasks:
    """All masks of all layers of one group of queries (L, B, N, h, w), multiplied out."""

    logits: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The product itself."""
        return (self.logits,)

    def rows(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """(M, h, w)."""
        return self.logits[layer, image, query]

    def of_image(self, image: int, layers: Iterable[int], points: Tensor) -> Iterator[Tensor]:
        """(N, P) of each layer."""
        for layer in layers:
            yield sample_points(self.logits[layer, image][None], points[None])[0]


@dataclass(frozen=True)
class MultipliedOut:
    """Masks that are multiplied out as soon as a group takes its own."""

    masks: EmbeddedMasks

    def __getitem__(self, queries: slice) -> DenseMasks:
        """The masks of one group."""
        group = self.masks[queries]
        return DenseMasks(torch.einsum("lbnc,bchw->lbnhw", group.queries, group.pixels))


def multiply_out(model: Any) -> None:
    """Make the mask head of a model return dense masks."""
    lazy = model.mask_head.forward

    def forward(*inputs: Any) -> list[MultipliedOut | DenseMasks]:
        decoded, *proposals = map(MultipliedOut, lazy(*inputs))
        return [decoded, *(masks[:] for masks in proposals)]  # decoded queries are of several groups

    model.mask_head.forward = forward


def target(objects: int, size: int) -> Target:
    """Random boxes, whose masks they fill."""
    found = boxes(objects, "cpu", 0)[0]
    centres = (torch.arange(size) + 0.5) / size
    x, y = ((centres - found[:, axis, None]).abs() < found[:, axis + 2, None] / 2 for axis in (0, 1))
    return Target(labels=torch.arange(objects) % 80, boxes=found, masks=y[:, :, None] & x[:, None, :])


def measure(variant: str, queries: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak in MiB, seconds and losses of one step."""
    torch.manual_seed(0)
    task = "det" if variant == "det" else "inst"
    model = detrkit.create_model("dino_r50_4scale", **SETTINGS, num_queries=queries, task=task).to(arguments.device)
    model.train()
    if variant == "dense":
        multiply_out(model)
    mask_terms._ROWS_AT_ONCE = AT_ONCE[variant]
    criterion = build_criterion(model.config)
    image = torch.randn(1, 3, arguments.size, arguments.size, device=arguments.device)
    targets = [target(arguments.objects, arguments.size).to(arguments.device)]
    row: dict[str, Any] = {"variant": variant, "queries": queries}

    def step() -> None:
        torch.manual_seed(0)
        model.zero_grad()
        output = criterion(model(image, None, targets), targets)
        output.total.backward()
        row["loss"] = float(output.total.detach())

    if arguments.device.startswith("cuda"):
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        row["peak_MiB"] = torch.cuda.max_memory_allocated() / MIB
        row["seconds"] = timed(step, arguments.device, repeats=3)
        return row
    gc.collect()
    with PeakMemory() as memory:
        row["seconds"] = timed(step, arguments.device, repeats=1, warmup=0, clock=time.process_time)
    row["peak_MiB"] = memory.peak / MIB
    return row


def main() -> None:
    """Measure all variants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs="+", default=[300, 900])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    torch.set_num_threads(arguments.threads)
    print("| queries | step | peak, MiB | masks add, MiB | share of dense | seconds |\n|---|---|---|---|---|---|")
    for queries in arguments.queries:
        found = {variant: measure(variant, queries, arguments) for variant in ("det", "dense", "lazy")}
        base = found["det"]["peak_MiB"]
        for variant, row in found.items():
            row["added_MiB"] = row["peak_MiB"] - base
            row["of_dense"] = row["added_MiB"] / (found["dense"]["peak_MiB"] - base)
            print(
                f"| {queries} | {variant} | {row['peak_MiB']:.0f} | {row['added_MiB']:.0f} | {row['of_dense']:.2f} | "
                f"{row['seconds']:.1f} |",
                flush=True,
            )
            rows.append(row)
    if arguments.json is not None:
        result = {"size": arguments.size, "objects": arguments.objects, "device": arguments.device, "rows": rows}
        arguments.json.write_text(json.dumps({**result, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
