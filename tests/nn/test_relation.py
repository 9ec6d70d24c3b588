"""Position relation and its sine embeddings against recordings of the official implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.nn.position import SinePosition, sine_boxes, sine_embedding
from detrkit.nn.relation import PositionRelation, box_relation
from tests.golden.harness import Case


@pytest.fixture
def case(shared: Path, golden_count: dict[str, Any]) -> Case:
    return Case.read(shared, "op_relation", golden_count)


def test_relation_and_its_gradients(case: Case) -> None:
    relation = PositionRelation(num_heads=8)
    relation.load_state_dict({key.replace("proj.0", "proj"): value for key, value in case.weights.items()})
    source, target = case.tensors["src_boxes"], case.tensors["tgt_boxes"]
    case.close("box_rel_encoding", box_relation(source, target))
    out = relation(source, target)
    case.close("position_relation_embedding", out)
    case.close("position_relation_embedding_self", relation(source, source))
    out.backward(case.tensors["grad_output"])
    for name, parameter in relation.named_parameters():
        assert parameter.grad is not None
        expected = case.tensors[f"grad.{name.replace('proj', 'proj.0')}"]
        # sums of 442 products of features, each within the tolerance: in proportion to the largest sum
        case.match(f"grad.{name}", parameter.grad, expected, atol=case.tolerance() * float(expected.abs().max()))


def test_a_traced_relation_takes_batches_of_any_size() -> None:
    relation, boxes = PositionRelation(num_heads=2), torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    batch = {0: torch.export.Dim("batch", max=9)}
    program = torch.export.export(relation, (boxes[:2], boxes[:2]), dynamic_shapes=(batch, batch)).module()
    for images in (1, 3):
        found = program(boxes[:images], boxes[:images])
        assert found.shape == (images, 2, 5, 5)
        torch.testing.assert_close(found, relation(boxes[:images], boxes[:images]))


def test_sine_embeddings(case: Case) -> None:
    values = case.tensors["sine_pos_embed.in"]
    case.close("sine_pos_embed.out_128_exchange_xy", sine_boxes(values, 128, order=(1, 0, 2, 3)))
    small = sine_embedding(values * 100.0, 16).flatten(-2)
    case.close("sine_pos_embed.out_16_scale100_no_exchange", small)
    mask = case.tensors["position_embedding_sine.mask"].bool()
    encoded = SinePosition(dim=64, offset=-0.5)(mask).permute(0, 3, 1, 2)
    name = "position_embedding_sine.offset_-0.5_normalize.32"
    case.match(name, encoded[:, :, ~mask[0]], case.tensors[name][:, :, ~mask[0]], atol=case.tolerance())
