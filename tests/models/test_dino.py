"""Options of DINO without a golden recording."""

from __future__ import annotations

from typing import Any

import torch

from tests.small import small_model


def test_query_scale_acts_from_the_second_layer_on() -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    plain = small_model("dino_pp_r50").eval()
    scaled: Any = small_model("dino_pp_r50", query_scale=True).eval()
    missing = scaled.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [f"decoder.query_scale.layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    last = scaled.decoder.query_scale.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.ones_(last.bias)
    with torch.no_grad():
        before, ones = plain(images), scaled(images)
        torch.testing.assert_close(ones.logits, before.logits)
        last.bias.fill_(0.5)
        halves = scaled(images)
    torch.testing.assert_close(halves.logits[0], before.logits[0])
    assert not torch.allclose(halves.logits[1], before.logits[1])
