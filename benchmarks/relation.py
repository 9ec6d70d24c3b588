"""Cost of the position relation between queries: memory saved for the backward pass, and time, in one run.

python benchmarks/relation.py [--queries 1100] [--device cpu] [--golden ../shared] [--json FILE]

Variants: ``none``; ``upstream``, the published relation of Relation-DETR, which keeps all intermediate tensors;
``full``, the same numbers computed row by row (the default of detrkit); ``low rank`` as in DAPE. "Kept" is the memory
that autograd saves, counted by ``saved_tensors_hooks``: each storage once, without parameters. With ``--golden`` the
published form must first reproduce the recorded losses of the official implementation.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import MIB, timed, with_saved_bytes
from published_forms import publish_relation
from torch import Tensor

import detrkit
from detrkit.nn.deformable import Tokens
from detrkit.nn.queries import Queries
from detrkit.nn.relation import LowRankRelation, PositionRelation

HEADS, DIM, LAYERS = 8, 256, 6


def variants() -> dict[str, Any]:
    """Name -> relation module or None."""
    torch.manual_seed(0)
    full = PositionRelation(num_heads=HEADS)
    upstream = publish_relation(PositionRelation(num_heads=HEADS))
    upstream.load_state_dict(full.state_dict())
    ranks = {f"low rank {rank}": LowRankRelation(num_heads=HEADS, rank=rank) for rank in (16, 64, 128)}
    for relation in ranks.values():
        torch.nn.init.normal_(relation.target_proj.weight, std=0.02)
    return {"none": None, "upstream": upstream, "full": full, **ranks}


def boxes(number: int, device: str, seed: int) -> Tensor:
    """Random boxes cxcywh (1, N, 4)."""
    generator = torch.Generator().manual_seed(seed)
    centre, size = torch.rand(2, 1, number, 2, generator=generator)
    return torch.cat((centre, 0.02 + 0.4 * size**2), dim=-1).to(device)


def mask(number: int, device: str) -> Tensor:
    """Attention mask of DINO with two denoising groups in the first 200 queries."""
    group = torch.arange(number).div(100, rounding_mode="floor").clamp(max=2)
    blocked = (group[:, None] != group) & (group != 2)
    return torch.zeros(1, 1, number, number).masked_fill(blocked, -torch.inf).to(device)


def layer(number: int, device: str, repeats: int) -> dict[str, Any]:
    """Self-attention of one layer: memory kept in MiB, seconds of forward and backward."""
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, HEADS, number, DIM // HEADS, device=device))
    source, target, blocked = boxes(number, device, 1), boxes(number, device, 2), mask(number, device)
    rows: dict[str, Any] = {}
    outputs: dict[str, tuple[Tensor, tuple[Tensor, ...]]] = {}
    for name, relation in variants().items():
        relation = None if relation is None else relation.to(device)

        def attend(relation: Any = relation) -> Tensor:
            if relation is None:
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=blocked)
            out: Tensor = relation.bias(source, target, blocked).attend(q, k, v, 0.0)
            return out

        out, saved = with_saved_bytes(attend)
        parameters = [] if relation is None else list(relation.parameters())
        inputs = (q, k, v, *parameters)
        gradients = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
        outputs[name] = out.detach(), tuple(x for x in gradients if x is not None)

        def step(attend: Callable[[], Tensor] = attend, inputs: tuple[Tensor, ...] = inputs) -> None:
            torch.autograd.grad(attend().square().sum(), inputs, allow_unused=True)

        rows[name] = {"kept_MiB": saved / MIB, "seconds": timed(step, device, repeats)}
    base = rows["none"]["kept_MiB"]
    for row in rows.values():
        row["relation_MiB"] = row["kept_MiB"] - base
        row["of_upstream"] = row["relation_MiB"] / (rows["upstream"]["kept_MiB"] - base)
    exact = copy.deepcopy(variants()["upstream"]).to(device, torch.float64)
    inputs = tuple(x.detach().double().requires_grad_() for x in (q, k, v))
    out = exact.bias(source, target, blocked.double()).attend(*inputs, 0.0)
    expected = torch.autograd.grad(out.square().sum(), (*inputs, *exact.parameters()))
    errors = {
        name: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(outputs[name][1], expected, strict=True))
        for name in ("upstream", "full")
    }
    identical = torch.equal(outputs["upstream"][0], outputs["full"][0])
    return {"rows": rows, "outputs_bit_identical": identical, "gradient_error": errors}


def step(number: int, device: str, repeats: int) -> dict[str, Any]:
    """A decoder of six layers on the tokens of a 512 x 512 image: kept MiB, seconds of forward and backward."""
    rows: dict[str, Any] = {}
    settings: dict[str, Any] = {
        "backbone": "resnet18",
        "encoder_layers": 1,
        "num_queries": 900,
        "one_to_many_queries": 0,
    }
    shapes = torch.tensor([[64, 64], [32, 32], [16, 16], [8, 8]])
    count = int(shapes.prod(1).sum())
    memory = Tokens(
        content=torch.randn(1, count, DIM, device=device, requires_grad=True),
        position=torch.zeros(1, count, DIM, device=device),
        padding_mask=torch.zeros(1, count, dtype=torch.bool, device=device),
        shapes=shapes,
        valid_cells=shapes.flip(-1)[None].float().to(device),
        level_embed=torch.zeros(count, DIM, device=device),
    )
    content = torch.randn(1, number, DIM, device=device, requires_grad=True)
    queries = [Queries(content=content, reference=boxes(number, device, 1), blocked=mask(number, device).isinf())]
    for name, relation in variants().items():
        kind = "none" if relation is None else "full" if isinstance(relation, PositionRelation) else "low_rank"
        torch.manual_seed(0)
        model: Any = detrkit.create_model("relation_detr_r50", **settings, relation=kind).to(device).train()
        if relation is not None:
            model.decoder.relation = relation.to(device)

        def forward(model: Any = model) -> Tensor:
            decoded = model.decode(queries, memory)
            total: Tensor = decoded.logits.square().mean() + decoded.boxes.square().mean()
            return total

        loss, saved = with_saved_bytes(forward)
        loss.backward()

        def once(forward: Callable[[], Tensor] = forward) -> None:
            forward().backward()

        rows[name] = {"kept_MiB": saved / MIB, "seconds": timed(once, device, repeats), "loss": float(loss.detach())}
    for row in rows.values():
        row["time_of_upstream"] = row["seconds"] / rows["upstream"]["seconds"]
    return rows


def golden(shared: Path, publish: Callable[[Any], Any] = lambda model: model) -> float:
    """Largest relative difference between the 60 losses of the published form and the recorded ones.

    publish: makes more of the model as published than the relation.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the test code that reads recordings
    from detrkit.losses import build_criterion
    from tests.golden.harness import Case
    from tests.golden.test_deformable import build, official_name

    case = Case.read(shared, "relation_detr_r50_q50", {"cases": set(), "tensors": 0})
    case.info["options"] = {}
    model: Any = build(case).train()
    publish_relation(model.decoder.relation)
    publish(model)
    terms = build_criterion(model.config)(model(*case.batch(), case.targets()), case.targets()).terms
    weights, recorded = case.info["weight_dict"], case.info["losses"]
    losses = {official_name(name): float(value) for name, value in terms.items() if name.startswith("loss_")}
    assert len(losses) == 60
    return max(abs(value * weights[name] / recorded[name] - 1) for name, value in losses.items())


def save(result: dict[str, Any], path: Path | None) -> None:
    """Write the results so far as JSON."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Run all measurements and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--golden", type=Path, help="folder with golden/: check the published form first")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"queries": arguments.queries, "device": arguments.device, "torch": torch.__version__}
    if arguments.golden is not None:
        result["golden_losses_relative_error"] = golden(arguments.golden)
        print(f"published form against 60 recorded losses: {result['golden_losses_relative_error']:.1e} relative\n")
    result |= layer(arguments.queries, arguments.device, arguments.repeats)
    save(result, arguments.json)
    print(f"one layer, N = {arguments.queries}, batch 1, {arguments.device}")
    print("| relation | kept, MiB | minus none | share of upstream | forward + backward, s |\n|---|---|---|---|---|")
    for name, row in result["rows"].items():
        print(
            f"| {name} | {row['kept_MiB']:.1f} | {row['relation_MiB']:.2f} | {row['of_upstream']:.4f} | "
            f"{row['seconds']:.3f} |"
        )
    print(
        f"full against upstream: outputs bit-identical on this machine: {result['outputs_bit_identical']}, "
        f"gradients within {result['gradient_error']['full']:.1e} of those in double precision, "
        f"upstream's within {result['gradient_error']['upstream']:.1e}\n"
    )
    result["step"] = step(arguments.queries, arguments.device, arguments.repeats)
    print("six decoder layers, 512 x 512 pixels")
    print("| relation | kept, MiB | forward + backward, s | time of upstream |\n|---|---|---|---|")
    for name, row in result["step"].items():
        print(f"| {name} | {row['kept_MiB']:.0f} | {row['seconds']:.2f} | {row['time_of_upstream']:.2f} |")
    save(result, arguments.json)


if __name__ == "__main__":
    main()
