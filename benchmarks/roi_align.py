"""Speed of RoIAlign as weighted bags of tokens against torchvision, in one run, forward and backward.

    python benchmarks/roi_align.py [--device cuda] [--scale 1] [--json FILE]

One step pools keys and values of three levels for every query, like a decoder layer of DE-DETR. Both start from tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measuring import save_rows, timed
from torch import Tensor

from detrkit.ops.roi_align import roi_align_bags, roi_align_maps

SETTINGS = {  # batch, channels (keys and values), queries, image height and width
    "dela_detr_lite0, 320 px": (4, 384, 100, 320, 427),
    "de_detr_r50, 800 px": (1, 512, 100, 800, 1066),
    "dela_detr_r50, 800 px": (1, 512, 300, 800, 1066),
}
STRIDES = (8, 16, 32)


def compare(batch: int, channels: int, queries: int, height: int, width: int, device: str) -> tuple[float, float]:
    """Seconds of our RoIAlign and of torchvision, after checking that both agree."""
    torch.manual_seed(0)
    shapes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    number = sum(rows * columns for rows, columns in shapes)
    tokens = torch.randn(batch, number, channels, device=device).requires_grad_()
    centre = torch.rand(batch, queries, 2, device=device) * torch.tensor([width, height], device=device)
    size = torch.rand(batch, queries, 2, device=device) * 0.3 * min(height, width)
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=-1)

    def ours() -> Tensor:
        return roi_align_bags(boxes, shapes=shapes, strides=STRIDES, resolution=4).pool(tokens)

    def torchvision_pool() -> Tensor:
        return roi_align_maps(tokens, boxes, shapes=shapes, strides=STRIDES, resolution=4)

    torch.testing.assert_close(ours(), torchvision_pool(), atol=1e-3, rtol=1e-3)

    def seconds(pool: Callable[[], Tensor]) -> float:
        return timed(lambda: pool().square().sum().backward(), device, repeats=7, warmup=2)

    return seconds(ours), seconds(torchvision_pool)


def main() -> None:
    """Print one line per setting: milliseconds of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the image size; less than 1 for a trial")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    for name, setting in SETTINGS.items():
        *counts, height, width = setting
        ours, theirs = compare(*counts, round(args.scale * height), round(args.scale * width), args.device)
        rows.append({"setting": name, "bags_s": ours, "torchvision_s": theirs, "ratio": theirs / ours})
        print(f"{name:26} bags {ours * 1e3:8.1f} ms   torchvision {theirs * 1e3:8.1f} ms   {theirs / ours:5.1f} x")
    save_rows(args.json, rows, args.device)


if __name__ == "__main__":
    main()
