"""Position relation and its sine embeddings against recordings of the official implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detrkit.nn.position import SinePosition, sine_boxes, sine_embedding
from detrkit.nn.relation import PositionRelation, box_relation
from tests.golden.harness import Case


@pytest.fixture
def case(shared: Path, golden_count: dict[str, Any]) -> Case:
    return Case.read(shared, "op_relation", golden_count)


def test_relation_and_its_gradients(case: Case) -> None:
    relation = PositionRelation(num_heads=8)
    relation.load_state_dict({key.replace("proj.0", "proj"): value for key, value in case.state_dict().items()})
    source, target = case.tensors["src_boxes"], case.tensors["tgt_boxes"]
    case.close("box_rel_encoding", box_relation(source, target), 1e-6)
    out = relation(source, target)
    case.close("position_relation_embedding", out, 2e-5)
    case.close("position_relation_embedding_self", relation(source, source), 2e-5)
    out.backward(case.tensors["grad_output"])
    for name, parameter in relation.named_parameters():
        assert parameter.grad is not None
        expected = case.tensors[f"grad.{name.replace('proj', 'proj.0')}"]
        case.match(f"grad.{name}", parameter.grad, expected, atol=1e-4, rtol=1e-4)


def test_sine_embeddings(case: Case) -> None:
    values = case.tensors["sine_pos_embed.in"]
    case.close("sine_pos_embed.out_128_exchange_xy", sine_boxes(values, 128, order=(1, 0, 2, 3)), 1e-5)
    small = sine_embedding(values * 100.0, 16).flatten(-2)
    case.close("sine_pos_embed.out_16_scale100_no_exchange", small, 2e-5)
    mask = case.tensors["position_embedding_sine.mask"].bool()
    encoded = SinePosition(dim=64, offset=-0.5)(mask).permute(0, 3, 1, 2)
    name = "position_embedding_sine.offset_-0.5_normalize.32"
    case.match(name, encoded[:, :, ~mask[0]], case.tensors[name][:, :, ~mask[0]], atol=1e-5, rtol=0.0)
