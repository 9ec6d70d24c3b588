"""Peak memory of one training step on a crowded image, such as a tile of an aerial photo.

python benchmarks/dense_scene.py [--model relation_detr_r50] [--objects 1500] [--size 800 1333] [--device cpu]

On a CPU it is the peak resident set of the process, including PyTorch; on a GPU the peak of the allocator.
"""

from __future__ import annotations

import argparse

import torch
from measuring import peak_mib, save_rows, timed

import detrkit
from detrkit.losses import build_criterion
from detrkit.structures import Target


def main() -> None:
    """Forward, matching, losses, backward, optimizer step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="relation_detr_r50")
    parser.add_argument("--objects", type=int, default=1500)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = detrkit.create_model(arguments.model).to(arguments.device).train()
    criterion = build_criterion(model.config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    boxes = torch.cat((torch.rand(arguments.objects, 2) * 0.96 + 0.02, torch.full((arguments.objects, 2), 0.02)), dim=1)
    labels = torch.randint(0, model.config.num_classes, (arguments.objects,))
    targets = [Target(labels=labels, boxes=boxes).to(arguments.device)]
    images = torch.randn(1, 3, *arguments.size, device=arguments.device)
    losses: list[float] = []

    def step() -> None:
        prepared = criterion.prepare(targets)
        total = criterion(model(images, None, prepared), prepared).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))

    seconds = timed(
        step, arguments.device, repeats=1
    )  # the first step, which creates the optimizer state, is not counted
    height, width = arguments.size
    peak = peak_mib(arguments.device)
    print(
        f"{arguments.model}, {arguments.objects} objects, {height} x {width}, batch 1, fp32, {arguments.device}: "
        f"loss {losses[-1]:.1f}, peak {peak / 1024:.1f} GiB, {seconds:.0f} s per step"
    )
    setting = {"model": arguments.model, "objects": arguments.objects, "size": list(arguments.size)}
    save_rows(arguments.json, [setting | {"loss": losses[-1], "peak_MiB": peak, "seconds": seconds}], arguments.device)


if __name__ == "__main__":
    main()
