"""Cost of a training step: seconds, peak memory, and memory saved by autograd for the backward pass."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from measuring import MIB, peak_mib, timed, with_saved_bytes
from relation import boxes
from torch import Tensor

from detrkit.losses import build_criterion
from detrkit.structures import Target


def training_step(
    model: Any, *, size: tuple[int, int], objects: int, device: str, precision: str, repeats: int
) -> dict[str, Any]:
    """Measure forward, losses, backward and update on one random image.

    The peak is the peak memory of the GPU; on a CPU it is the largest resident set of this process so far, including
    PyTorch, so measure only one model per process.

    Args:
        model: the model.
        size: (height, width) of the image in pixels.
        objects: number of objects in the image.
        device: a torch device.
        precision: "fp32" or "bf16".
        repeats: number of timed steps.
    """
    model = model.to(device).train()
    criterion = build_criterion(model.config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    labels = torch.randint(0, model.config.num_classes, (objects,))
    targets = criterion.prepare([Target(labels=labels, boxes=boxes(objects, "cpu", 0)[0]).to(device)])
    images = torch.randn(1, 3, *size, device=device)
    queries: dict[str, int] = {}

    def forward() -> Tensor:
        bf16 = torch.autocast(device.split(":")[0], torch.bfloat16) if precision == "bf16" else nullcontext()
        with bf16:
            out = model(images, None, targets)
        queries["matching"] = out.logits.shape[2]
        queries.update({name: group.logits.shape[2] for name, group in out.groups.items() if "encoder" not in name})
        total: Tensor = criterion(out, targets).total
        if not torch.isfinite(total):
            raise RuntimeError(f"the loss is {float(total)}")
        return total

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    seconds = timed(step, device, repeats)  # the first step, which creates the optimizer state, is not counted
    peak = peak_mib(device)
    optimizer.zero_grad()
    _, saved = with_saved_bytes(forward)
    return {
        "queries": queries,
        "parameters": sum(p.numel() for p in model.parameters()),
        "kept_MiB": saved / MIB,
        "peak_MiB": peak,
        "seconds": seconds,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
    }
