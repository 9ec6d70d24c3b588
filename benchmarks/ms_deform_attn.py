"""Speed of the active implementation of deformable attention against the reference, in one run.

    python benchmarks/ms_deform_attn.py [--device cuda] [--threads 1] [--scale 1] [--json FILE]

It times one call of the operator, forward and forward with backward. Samples lie around the centres of the tokens (an
encoder layer) or around random points (a decoder layer). Both implementations must agree before they are timed.
"""

from __future__ import annotations

import argparse

import torch
from measuring import save_rows, timed
from torch import Tensor

from detrkit.ops.ms_deform_attn import BACKENDS, Backend, active_backend

STRIDES = (8, 16, 32, 64)
SETTINGS = {  # images, height, width, queries of a decoder layer or None for an encoder layer
    "encoder layer, 4 x 320 x 427": (4, 320, 427, None),
    "decoder layer, 4 x 320 x 427, 300 queries": (4, 320, 427, 300),
    "encoder layer, 1 x 800 x 1333": (1, 800, 1333, None),
    "decoder layer, 1 x 800 x 1333, 1100 queries": (1, 800, 1333, 1100),
}
HEADS, DIM, POINTS = 8, 32, 4
Inputs = tuple[Tensor, list[list[int]], Tensor, Tensor]


def inputs(images: int, height: int, width: int, queries: int | None, device: str) -> Inputs:
    """value, shapes, locations, weights; samples lie within a few cells of their query."""
    torch.manual_seed(0)
    shapes = [[-(-height // stride), -(-width // stride)] for stride in STRIDES]
    if queries is None:
        centres = [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w) for h, w in shapes]
        centre = torch.cat(centres).flip(-1).expand(images, -1, 2)
    else:
        centre = torch.rand(images, queries, 2)
    spread = torch.tensor([[2.0 / w, 2.0 / h] for h, w in shapes])[:, None]
    locations = centre[:, :, None, None, None] + spread * torch.randn(*centre.shape[:2], HEADS, 4, POINTS, 2)
    value = torch.randn(images, sum(h * w for h, w in shapes), HEADS, DIM)
    weights = torch.rand(locations.shape[:-1])
    return value.to(device), shapes, locations.to(device), weights.to(device)


def measure(backend: Backend, outer: Tensor, arguments: Inputs, device: str) -> dict[str, float]:
    """Seconds of the forward pass, and of forward and backward."""
    forward = timed(lambda: backend.forward(*arguments), device, repeats=5)
    backward = timed(lambda: backend.backward(outer, *arguments), device, repeats=5)
    return {"forward_s": forward, "both_s": forward + backward}


def main() -> None:
    """Print one line per setting: milliseconds of both implementations and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the image size; less than 1 for a trial")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    active = active_backend(args.device)
    if active == "reference":
        print(f"{args.device} has no implementation of its own and uses the reference: nothing to compare")
        return
    rows = []
    for name, (images, height, width, queries) in SETTINGS.items():
        arguments = inputs(images, round(args.scale * height), round(args.scale * width), queries, args.device)
        outer = torch.randn(*arguments[2].shape[:2], HEADS * DIM, device=args.device)
        both = {key: BACKENDS[key] for key in (active, "reference")}
        ours, expected = (
            (backend.forward(*arguments), *backend.backward(outer, *arguments)) for backend in both.values()
        )
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)
        found = {key: measure(backend, outer, arguments, args.device) for key, backend in both.items()}
        ratio = {key: found["reference"][key] / found[active][key] for key in ("forward_s", "both_s")}
        rows.append({"setting": name, active: found[active], "reference": found["reference"], "ratio": ratio})
        print(
            f"{name:44} forward {found[active]['forward_s'] * 1e3:7.1f} of {found['reference']['forward_s'] * 1e3:7.1f}"
            f" ms ({ratio['forward_s']:.1f} x)   with backward {found[active]['both_s'] * 1e3:7.1f} of "
            f"{found['reference']['both_s'] * 1e3:7.1f} ms ({ratio['both_s']:.1f} x)"
        )
    save_rows(args.json, rows, args.device)


if __name__ == "__main__":
    main()
