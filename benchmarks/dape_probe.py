"""What harmonised sampling does to positions, measured on a trained detector (docs/results.md, "DAPE: what decides").

python benchmarks/dape_probe.py positions --checkpoint RUN --data DIR    what is left of the own place, layer by layer
python benchmarks/dape_probe.py residual --checkpoint RUN --data DIR     AP with other residuals of the code
python benchmarks/dape_probe.py gradients --checkpoint RUN --data DIR    gradients of one training step

`positions` runs the detector on images and looks at the tokens before every encoder layer and after the last: from half
of the images a linear map from the position encoding to the cell centre is fitted, and its error on the other half is
printed in units of the image side and as the share of variance explained (R²). The shift is how far the code has moved
from the token's own place: the same kind of map is fitted to the codes of the own places, and applied to both.
DIR is a COCO folder, `--checkpoint` a run, a file or a name. Rows are appended to `--out`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from dape_ablation import Results, digest, load_model, name_of, score_change
from torch import Tensor

from detrkit.data import build_loader, load_dataset
from detrkit.inference.preprocess import eval_transform
from detrkit.losses import build_criterion
from detrkit.nn.harmonized import HarmonizedEncoderLayer
from detrkit.structures import Batch

RESIDUALS = (1.0, 0.75, 0.5, 0.0)
GROUPS = (
    "encoder.code.proj",
    "encoder.code.up",
    "sampling_offsets",
    "attention_weights",
    "value_proj",
    "ref_point_head",
)


def batches(model: Any, data: str, count: int, size: int = 1) -> Iterable[Batch]:
    """The first validation images of a COCO folder, as an evaluation sees them."""
    dataset = load_dataset(data, split="val").with_transform(eval_transform(model.config))
    indices = range(min(count, len(dataset)))
    return build_loader(dataset, [list(indices[i : i + size]) for i in range(0, len(indices), size)])


class Watched:
    """Positions, codes and centres of valid tokens around every encoder layer, for one image at a time."""

    def __init__(self, model: Any) -> None:
        self.rows: list[list[Tensor]] = []
        self.codes: list[list[Tensor]] = []
        self.centres: list[Tensor] = []
        self._layers = model.encoder.layers
        for index, layer in enumerate(self._layers):
            layer.register_forward_hook(lambda module, args, output, index=index: self._see(index, args[0], output))
        model.encoder.register_forward_hook(lambda module, args, output: self._end(output))

    def _see(self, index: int, tokens: Any, output: Any) -> None:
        valid = ~tokens.padding_mask[0]
        if index == 0:
            self.rows.append([])
            self.codes.append([])
            self.centres.append(tokens.centres()[0][valid])
        self.rows[-1].append(tokens.position[0][valid])
        if hasattr(tokens, "code"):
            if index == 0:
                self.codes[-1].append(tokens.code[0][valid])
            self.codes[-1].append(output.code[0][valid])

    def _end(self, memory: Any) -> None:
        self.rows[-1].append(memory.position[0][~memory.padding_mask[0]])


def linear_map(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Ridge regression with a constant, (N, C) -> (N, D): the map (C + 1, D)."""
    wide = torch.cat((inputs, torch.ones_like(inputs[:, :1])), dim=1).double()
    gram = wide.mT @ wide
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, wide.mT @ outputs.double())


def apply(mapping: Tensor, inputs: Tensor) -> Tensor:
    """Apply a map of :func:`linear_map`."""
    return inputs.double() @ mapping[:-1] + mapping[-1]


def probe(fitted: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Fit a map from features to centres, and its error on other images."""
    mapping = linear_map(*fitted)
    features, centres = held_out
    errors = apply(mapping, features) - centres
    variance = (centres - centres.mean(0)).square().sum(-1).mean()
    return {
        "error": float(errors.norm(dim=-1).mean()),
        "explained": 1 - float(errors.square().sum(-1).mean() / variance),
    }


def positions(args: argparse.Namespace) -> None:
    """Record what is left of the own place, layer by layer."""
    what = {"kind": "positions", "name": name_of(args), "weights": digest(args), "data": Path(args.data).name}
    what |= {"images": args.images}
    results = Results(args.out)
    if results.has(what):
        return
    model = load_model(args).eval()
    watched = Watched(model)
    with torch.no_grad():
        for batch in batches(model, args.data, args.images):
            model(batch.images, batch.padding_mask)
    half = len(watched.centres) // 2

    def split(rows: list[list[Tensor]], index: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part in (slice(None, half), slice(half, None)):
            yield torch.cat([row[index] for row in rows[part]]), torch.cat(watched.centres[part])

    layers = []
    for index in range(len(watched.rows[0])):
        fitted, held_out = split(watched.rows, index)
        layers.append(probe(fitted, held_out))
    shifts = []
    if watched.codes[0]:
        (own, centres), _ = split(watched.codes, 0)
        mapping = linear_map(own, centres)
        for index in range(len(watched.codes[0])):
            _, (code, centres) = split(watched.codes, index)
            _, (first, _) = split(watched.codes, 0)
            moved = apply(mapping, code) - apply(mapping, first)
            change = (code - first).norm(dim=-1).mean() / (first - first.mean(0)).norm(dim=-1).mean()
            shifts.append({"shift": float(moved.norm(dim=-1).mean()), "change": float(change)})
    results.add(what, layers=layers, shifts=shifts)


def residual(args: argparse.Namespace) -> None:
    """Record AP with other residuals of the code than that of training."""
    for value in RESIDUALS:

        def alter(model: Any, value: float = value) -> None:
            for layer in model.encoder.layers:
                assert isinstance(layer, HarmonizedEncoderLayer), "only encoders that sample codes have a residual"
                layer.code_residual = value

        score_change(args, f"code residual {value:g}", alter)


def gradients(args: argparse.Namespace) -> None:
    """Record root mean squares of the gradients of one training step, relative to those of the weights."""
    what = {"kind": "gradients", "name": name_of(args), "weights": digest(args), "data": Path(args.data).name}
    results = Results(args.out)
    if results.has(what):
        return
    torch.manual_seed(0)
    model = load_model(args).train()
    criterion = build_criterion(model.config)
    for batch in batches(model, args.data, args.images, 4):
        targets = criterion.prepare(batch.targets)
        criterion(model(batch.images, batch.padding_mask, targets), targets).total.backward()
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            group = next((key for key in GROUPS if key in name), "other")
            groups.setdefault(group, []).append((parameter.grad.flatten(), parameter.detach().flatten()))
    found = {}
    for group, pairs in groups.items():
        gradient, weight = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        rms = float(gradient.square().mean().sqrt())
        found[group] = {"gradient": rms, "of_weight": rms / float(weight.square().mean().sqrt())}
    results.add(what, groups=found)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for act in (positions, residual, gradients):
        one = commands.add_parser(act.__name__, help=(act.__doc__ or "").strip())
        one.add_argument("--checkpoint", required=True)
        one.add_argument("--name", help="name in the results; default: the name of its folder or file")
        one.add_argument("--data", required=True)
        one.add_argument("--images", type=int, default=24)
        one.add_argument("--device", default="auto")
        one.add_argument("--out", type=Path, default=Path("runs/dape_ablation.jsonl"))
        one.set_defaults(act=act)
    args = parser.parse_args()
    args.act(args)


if __name__ == "__main__":
    main()
