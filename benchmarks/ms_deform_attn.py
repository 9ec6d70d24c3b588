"""Speed of the active implementation of deformable attention against the reference, in one run.

    python benchmarks/ms_deform_attn.py [--device cuda] [--threads 1] [--scale 1] [--dtypes fp32 bf16] [--json FILE]

It times one call of the operator, forward and forward with backward. Samples lie around the centres of the tokens (an
encoder layer) or around random points (a decoder layer). Both implementations must agree before they are timed; on a
GPU so must the deterministic gradient of values. "floor" is the time in which the device copies as many bytes as a call
must move at least: every input read once and every output written once; "share" is floor / time. "rows" is the time of
a Triton kernel that only reads the token rows of all corners, and with the backward pass reads them again and adds to
as many rows with atomics: what the caches of the device give the memory accesses of the operator, without arithmetic.

DETRKIT_BACKEND=triton TRITON_INTERPRET=1 tries the kernels on a CPU, without meaningful times (--scale 0.01 --heads 1).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from measuring import MIB, save_rows, timed
from torch import Tensor

from detrkit.ops.ms_deform_attn import BACKENDS, Backend, active_backend
from detrkit.ops.on_gpu import LAUNCHES

STRIDES = (8, 16, 32, 64)
SETTINGS = {  # images, height, width, queries of a decoder layer or None for an encoder layer
    "encoder layer, 2 x 800 x 1333": (2, 800, 1333, None),
    "decoder layer, 2 x 800 x 1333, 1100 queries": (2, 800, 1333, 1100),
    "encoder layer, 4 x 320 x 427": (4, 320, 427, None),
    "decoder layer, 4 x 320 x 427, 300 queries": (4, 320, 427, 300),
    "encoder layer, 1 x 800 x 1333": (1, 800, 1333, None),
    "decoder layer, 1 x 800 x 1333, 1100 queries": (1, 800, 1333, 1100),
}
HEADS, DIM, POINTS = 8, 32, 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AGREEMENT = {"fp32": 1e-5, "bf16": 2e-2}  # of the largest value
Inputs = tuple[Tensor, list[list[int]], Tensor, Tensor]


def inputs(images: int, height: int, width: int, queries: int | None, device: str, heads: int = HEADS) -> Inputs:
    """value, shapes, locations, weights. Samples lie within a few cells of their query, and none within a thousandth of
    a cell of a line between cells, where the gradient of a location jumps and rounding decides."""
    torch.manual_seed(0)
    shapes = [[-(-height // stride), -(-width // stride)] for stride in STRIDES]
    if queries is None:
        centres = [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w) for h, w in shapes]
        centre = torch.cat(centres).flip(-1).expand(images, -1, 2)
    else:
        centre = torch.rand(images, queries, 2)
    spread = torch.tensor([[2.0 / w, 2.0 / h] for h, w in shapes])[:, None]
    locations = centre[:, :, None, None, None] + spread * torch.randn(*centre.shape[:2], heads, 4, POINTS, 2)
    size = torch.tensor([[w, h] for h, w in shapes])[:, None]
    cell = (locations * size - 0.5).floor()
    locations = (cell + (locations * size - 0.5 - cell).clamp(1e-3, 1 - 1e-3) + 0.5) / size
    value = torch.randn(images, sum(h * w for h, w in shapes), heads, DIM)
    weights = torch.rand(locations.shape[:-1])
    return value.to(device), shapes, locations.to(device), weights.to(device)


def least_bytes(arguments: Inputs) -> dict[str, int]:
    """Bytes that a call must move: inputs read once, outputs written once; sums of gradients are float32."""
    value, _, locations, weights = arguments
    sampled = locations.nbytes + weights.nbytes
    output = locations.shape[1] * value[:, 0].nbytes
    forward = value.nbytes + sampled + output
    backward = output + value.nbytes + 2 * sampled + 4 * value.numel() + value.nbytes
    return {"forward": forward, "both": forward + backward}


def copied_bytes_per_s(device: str) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros((1024 if device.startswith("cuda") else 64) * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), device, repeats=5)


@triton.jit
def _rows_kernel(
    values, sums, rows, output, queries, tokens, HEADS: tl.constexpr, WIDTH: tl.constexpr, CORNERS: tl.constexpr,
    BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    blocks = (queries + BLOCK - 1) // BLOCK
    head, rest = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    image, query = rest // blocks, (rest % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = query < queries
    channel = tl.arange(0, WIDTH)[None, :]
    start = image * tokens * HEADS * WIDTH + head * WIDTH
    total = tl.full((BLOCK, WIDTH), 0.0, tl.float32)
    for corner in range(CORNERS):
        row = tl.load(rows + ((image * queries + query) * HEADS + head) * CORNERS + corner, mask=inside, other=0)
        where = start + row[:, None] * (HEADS * WIDTH) + channel
        read = tl.load(values + where, mask=inside[:, None], other=0.0).to(tl.float32)
        total += read
        if ADD:
            tl.atomic_add(sums + where, read, mask=inside[:, None], sem="relaxed")
    where = ((image * queries + query) * HEADS + head)[:, None] * WIDTH + channel
    tl.store(output + where, total, mask=inside[:, None])


def rows_seconds(arguments: Inputs, device: str, repeats: int) -> dict[str, float]:
    """Seconds of the memory accesses to token rows alone."""
    value, shapes, locations, _ = arguments
    images, tokens, heads, width = value.shape
    queries = locations.shape[1]
    sizes = torch.tensor(shapes, device=device)
    start = torch.cat((sizes.new_zeros(1), sizes.prod(-1).cumsum(0)[:-1]))[:, None]
    height, wide = sizes[:, None, 0], sizes[:, None, 1]
    column = (locations[..., 0] * wide - 0.5).floor().clamp(-2, 10**6).long()
    row = (locations[..., 1] * height - 0.5).floor().clamp(-2, 10**6).long()
    corners = [
        start + (row + down).clamp(min=0).minimum(height - 1) * wide + (column + right).clamp(min=0).minimum(wide - 1)
        for down in (0, 1)
        for right in (0, 1)
    ]
    rows = torch.stack(corners, dim=-1).flatten(3).int().contiguous()
    output = torch.empty(images, queries, heads, width, dtype=value.dtype, device=device)
    sums = torch.zeros(value.shape, device=device)

    def run(add: bool, block: int) -> None:
        grid = (images * heads * triton.cdiv(queries, block),)
        _rows_kernel[grid](
            value, sums, rows, output, queries, tokens, heads, width, rows.shape[-1], block, add, num_warps=4
        )

    warmup = min(1, repeats - 1)
    forward = timed(lambda: run(False, 32), device, repeats, warmup)
    return {"forward_s": forward, "both_s": forward + timed(lambda: run(True, 16), device, repeats, warmup)}


def measure(backend: Backend, outer: Tensor, arguments: Inputs, device: str, repeats: int) -> dict[str, float]:
    """Seconds of the forward pass, and of forward and backward."""
    warmup = min(1, repeats - 1)
    forward = timed(lambda: backend.forward(*arguments), device, repeats, warmup)
    backward = timed(lambda: backend.backward(outer, *arguments), device, repeats, warmup)
    return {"forward_s": forward, "both_s": forward + backward}


def agree(found: Iterable[Tensor], expected: Iterable[Tensor], limit: float) -> None:
    """Check results relative to the largest value."""
    for one, other in zip(found, expected, strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(one, other, atol=limit * largest, rtol=0)


def check_deterministic(backend: Backend, outer: Tensor, arguments: Inputs, limit: float) -> bool:
    """The deterministic gradient of values: bit-identical twice, and equal to the other one up to rounding."""
    plain, *_ = backend.backward(outer, *arguments)
    torch.use_deterministic_algorithms(True)
    first, second = (backend.backward(outer, *arguments)[0] for _ in range(2))
    torch.use_deterministic_algorithms(False)
    agree([first], [plain], limit)
    return torch.equal(first, second)


def main() -> None:
    """Print one line per setting: milliseconds of both implementations, their ratio and the share of the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the image size; less than 1 for a trial")
    parser.add_argument("--dtypes", nargs="+", default=["fp32"], choices=DTYPES, help="of the values")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="only the first ones")
    parser.add_argument("--heads", type=int, default=HEADS)
    parser.add_argument("--repeats", type=int, default=5, help="1: without a warm-up, for a trial")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    active = active_backend(args.device)
    if active == "reference":
        print(f"{args.device} has no implementation of its own and uses the reference: nothing to compare")
        return
    rows: list[dict[str, Any]] = []
    speed = copied_bytes_per_s(args.device)
    print(f"{args.device} copies {speed / 1e9:.0f} GB/s, bytes read and written")
    for name, (images, height, width, queries) in list(SETTINGS.items())[: args.settings]:
        for dtype in args.dtypes:
            size = (round(args.scale * height), round(args.scale * width))
            value, *rest = inputs(images, *size, queries, args.device, args.heads)
            arguments: Inputs = (value.to(DTYPES[dtype]), *rest)
            outer = torch.randn(*arguments[2].shape[:2], args.heads * DIM, device=args.device).to(DTYPES[dtype])
            both = {key: BACKENDS[key] for key in (active, "reference")}
            ours, expected = (
                (backend.forward(*arguments), *backend.backward(outer, *arguments)) for backend in both.values()
            )
            agree(ours, expected, AGREEMENT[dtype])
            found = {
                key: measure(backend, outer, arguments, args.device, args.repeats) for key, backend in both.items()
            }
            ratio = {key: found["reference"][key] / found[active][key] for key in ("forward_s", "both_s")}
            floor = {f"{key}_s": count / speed for key, count in least_bytes(arguments).items()}
            share = {key: floor[key] / found[active][key] for key in floor}
            row = {"setting": name, "dtype": dtype, active: found[active], "reference": found["reference"]}
            row |= {"ratio": ratio, "floor": floor, "share_of_floor": share}
            if active == "triton":
                row["rows"] = rows_seconds(arguments, args.device, args.repeats)
                row["deterministic"] = check_deterministic(both[active], outer, arguments, AGREEMENT[dtype])
                row["launches"] = dict(LAUNCHES)
            rows.append(row)
            print(
                f"{name:44} {dtype} forward {found[active]['forward_s'] * 1e3:7.2f} of "
                f"{found['reference']['forward_s'] * 1e3:7.2f} ms ({ratio['forward_s']:.1f} x, floor "
                f"{share['forward_s']:.0%})   with backward {found[active]['both_s'] * 1e3:7.2f} of "
                f"{found['reference']['both_s'] * 1e3:7.2f} ms ({ratio['both_s']:.1f} x, floor {share['both_s']:.0%})"
                + "".join(f" rows {name} {1e3 * seconds:.2f} ms" for name, seconds in row.get("rows", {}).items()),
                flush=True,
            )
            save_rows(args.json, rows, args.device)


if __name__ == "__main__":
    main()
