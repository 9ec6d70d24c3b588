"""Activations of the encoder that the backward pass computes again: the same step from less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.losses import build_criterion
from detrkit.models import Detector
from detrkit.nn import transformer
from detrkit.structures import Target
from tests.small import small_model

FAMILIES = ("deformable_detr_lite0", "dino_lite0", "relation_detr_lite0", "salience_detr_lite0", "dape_lite0")


def step(model: Detector) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and the bytes that the forward pass keeps."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    criterion = build_criterion(model.config)
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.2]])
    targets = criterion.prepare([Target(labels=torch.tensor([0, 2]), boxes=boxes)] * 2)
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(images, None, targets)
    bytes_kept = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    loss = criterion(out, targets).total
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, bytes_kept


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("what", ["layers", "hidden layers"])
def test_a_step_is_the_same_and_keeps_less(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"dropout": 0.1, "ffn_dim": 256}
    loss, gradients, kept = step(small_model(name, **options).train())
    if what == "layers":
        options["encoder_checkpointing"] = True
    else:
        monkeypatch.setattr(transformer, "keeps_hidden", lambda x, width: False)
    again, others, fewer = step(small_model(name, **options).train())
    assert fewer < kept - 500_000
    torch.testing.assert_close(again, loss)
    assert others.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-5, atol=1e-6)


def test_large_hidden_layers_on_a_gpu_are_not_kept() -> None:
    on_gpu = torch.device("meta")  # a device that is no CPU
    assert not transformer.keeps_hidden(torch.empty(2, 22_223, 256, device=on_gpu), 2048)
    assert transformer.keeps_hidden(torch.empty(2, 1_100, 256, device=on_gpu), 2048)
    assert transformer.keeps_hidden(torch.empty(2, 22_223, 256), 2048)
