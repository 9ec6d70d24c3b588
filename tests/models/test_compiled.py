"""The compiled network: whole graphs, the numbers of the network itself, and as few graphs as canvases."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrkit.losses import build_criterion
from detrkit.models import Detector, create_model
from detrkit.models.compiled import filled_up, graph_inputs
from detrkit.nn.queries import MATCHING, Queries, attention_blocks
from detrkit.structures import Target
from tests.small import small_model

SIZE = (64, 96)
R50 = ("detr_r50", "deformable_detr_r50_two_stage", "de_detr_r50", "dino_r50_4scale", "relation_detr_r50", "dape_r50")


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch._dynamo.reset()


def batch(counts: Sequence[int], *, seed: int = 0) -> tuple[Tensor, Tensor, list[Target]]:
    """Images, the last with padding, and so many objects in each."""
    draw = torch.Generator().manual_seed(seed)
    images, padding = torch.randn(len(counts), 3, *SIZE, generator=draw), torch.zeros(len(counts), *SIZE).bool()
    padding[-1, :, 70:] = True
    targets = []
    for count in counts:
        boxes = torch.rand(count, 4, generator=draw) * 0.3 + 0.2
        targets.append(Target(labels=torch.randint(0, 3, (count,), generator=draw), boxes=boxes, size=SIZE))
    return images, padding, targets


def step(model: Detector, inputs: tuple[Tensor, Tensor, list[Target]]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients."""
    torch.manual_seed(3)
    model.zero_grad()
    criterion = build_criterion(model.config)
    loss = criterion(model(*inputs), criterion.prepare(inputs[2])).total
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model: Detector, compiled: Detector, inputs: Any, *, allowed: float = 1e-6) -> None:
    """Loss and the gradient of every parameter agree; a gradient that is tiny beside the others is rounded by these."""
    (loss, expected), (other, found) = step(model, inputs), step(compiled, inputs)
    assert other == pytest.approx(loss, rel=allowed)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        error = float((found[name] - gradient).norm())
        assert error <= allowed * (5 * float(gradient.norm()) + 0.01 * largest), name


def counted(model: Detector) -> list[torch.fx.GraphModule]:
    """Compile a model without generating code; the list gets one entry per graph."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model.compile(backend=backend, fullgraph=True)
    return graphs


def test_a_step_is_the_same_for_any_number_of_objects_in_one_graph() -> None:
    model = small_model("relation_detr_r50", encoder_layers=1, denoising_mask_unused=True).train()
    other = copy.deepcopy(model)
    graphs = counted(other)
    for counts in ((3, 2), (7, 1), (1, 0)):
        assert_same_step(model, other, batch(counts))
    assert len(graphs) == 1
    names = {str(node.target) for node in graphs[0].graph.nodes}
    assert any("ms_deform_attn_sides" in name for name in names)

    groups = []
    for one in (model, other):
        torch.manual_seed(3)
        groups.append(one(*batch((4, 1))).groups["denoising"])
    expected, found = groups
    assert found.normaliser == expected.normaliser > 1
    assert torch.equal(found.ignored, expected.ignored)
    assert all(torch.equal(a, b) for a, b in zip(found.pairs, expected.pairs, strict=True))
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-6)


def test_only_training_is_compiled_and_copies_are_not() -> None:
    model = small_model("detr_r50", encoder_layers=1, decoder_layers=1)
    keys = list(model.state_dict())
    graphs = counted(model)
    inputs = batch((1, 1))
    with torch.no_grad():
        model.eval()(*inputs)
        copy.deepcopy(model).train()(*inputs)
        assert graphs == []
        model.train()(*inputs)
    assert len(graphs) == 1
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", R50)
def test_no_tensor_of_the_network_is_made_on_the_host(name: str) -> None:
    """A graph for a GPU with parts for the CPU would need a C++ compiler, and wait for copies."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            seen.extend(str(func) for x in tree_leaves((args, out)) if isinstance(x, Tensor) and x.device.type == "cpu")
            return out

    with torch.device("meta"):
        model = create_model(name, encoder_layers=1, decoder_layers=2).train()
        queries = []
        if hasattr(model, "denoising"):
            content, reference = torch.empty(2, 200, 256), torch.empty(2, 200, 4)
            blocked = torch.empty(1, 1, 200, 200, dtype=torch.bool)
            kinds = {"name": "denoising", "sees": (MATCHING,), "blocked": blocked}
            queries = [Queries(content=content, reference=reference, **kinds)]
        images, padding = torch.empty(2, 3, 128, 160), torch.empty(2, 128, 160, dtype=torch.bool)
    if name == "relation_detr_r50":  # in place of the kernel, which has no form for this device
        model.decoder.relation.rows = None
    with Watch():
        model.network(images, padding, queries)
    assert seen == []


def test_queries_that_fill_up_are_seen_by_nobody() -> None:
    content, blocked = torch.randn(1, 3, 8), torch.eye(3, dtype=torch.bool)[None, None]
    given = Queries(name="denoising", content=content, reference=torch.rand(1, 3, 4), sees=(MATCHING,), blocked=blocked)
    assert filled_up(given, 3) is given
    found = filled_up(given, 5)
    (block,) = attention_blocks([found, Queries(content=torch.randn(1, 2, 8))])
    seen = block.blocked[0, 0] == 0
    assert torch.equal(seen[:3, :3], ~blocked[0, 0])
    assert not seen[:3, 3:5].any()
    assert not seen[5:, :5].any()  # nor by the matching queries
    assert torch.equal(seen[3:5, :5], torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]).bool())
    assert seen[:, 5:].all()
    assert torch.equal(found.content[:, :3], content)
    (bare,) = graph_inputs([replace(given, normaliser=4.0, ignored=torch.zeros(1, 3).bool())])
    assert (bare.number, bare.normaliser, bare.ignored) == (200, 1.0, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*R50, "deformable_detr_r50", "dape_lite0", "mask_dape_r50"])
def test_every_network_is_one_graph_with_the_same_step(name: str) -> None:
    model = small_model(name).train()
    other = copy.deepcopy(model)
    other.compile(backend="aot_eager", fullgraph=True)
    for counts in ((3, 2), (7, 1)):
        assert_same_step(model, other, batch(counts))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_generated_code_takes_the_same_step() -> None:
    model = small_model("dape_lite0", encoder_layers=1).train()
    other = copy.deepcopy(model)
    other.compile(fullgraph=True)
    assert_same_step(model, other, batch((3, 2)), allowed=1e-5)
