"""LoRA: the model starts as it was, its products have the rank, and merged weights predict the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from detrkit import weights
from detrkit.nn.attention import MultiheadAttention
from detrkit.nn.lora import LowRank, add_low_rank, is_low_rank, merge_low_rank, merged_state
from tests.small import small_model


def test_a_packed_projection_has_a_product_for_each_part() -> None:
    attention = MultiheadAttention(dim=8, num_heads=2)
    before = attention.in_proj_weight.detach().clone()
    assert add_low_rank(attention, rank=2, wanted=lambda name: name == "") == 1
    assert torch.equal(attention.in_proj_weight, before)
    product = attention.parametrizations["in_proj_weight"][0]
    assert isinstance(product, LowRank)
    torch.nn.init.normal_(product.up)
    change = (attention.in_proj_weight - before).detach()
    assert [int(torch.linalg.matrix_rank(part)) for part in change.chunk(3)] == [2, 2, 2]
    assert int(torch.linalg.matrix_rank(change)) == 6


@pytest.mark.parametrize("name", ["dape_lite0", "de_detr_lite0", "dela_conditional_detr_lite0", "salience_detr_lite0"])
def test_merged_weights_predict_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_model(name).eval()
    images = torch.randn(1, 3, 64, 64)
    plain = model(images).logits
    keys = set(model.state_dict())
    count = add_low_rank(model, rank=2, wanted=lambda name: name.startswith(("encoder.layers", "decoder.layers")))
    assert count > 4
    assert torch.equal(model(images).logits, plain), "it starts as it was"
    for key, parameter in model.named_parameters():
        if is_low_rank(key) and key.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.1)
    changed = model(images).logits
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert set(merged_state(model)) == keys
    twin = copy.deepcopy(model)
    saved = weights.load(weights.save(model, tmp_path / "model.safetensors"))
    torch.testing.assert_close(saved(images).logits, changed)
    merge_low_rank(model)
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(model(images).logits, changed)
    torch.testing.assert_close(twin(images).logits, changed)
    official = weights.to_official(twin)
    assert official.keys() == weights.to_official(model).keys()
    assert all(torch.equal(official[key], value) for key, value in weights.to_official(model).items())
