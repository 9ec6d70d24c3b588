"""DAB-, DN- and Deformable DETR++ against a second implementation, which follows the formulas and tensor names of the
repository (spec A.8 to A.13), since there is no recording of these three. Encoder and sampling are covered by other
recordings.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import detrkit
from detrkit.models import create_model, model_config
from detrkit.nn.tokens import Tokens
from detrkit.ops.ms_deform_attn import ms_deform_attn
from detrkit.structures import Target, pad_images
from tests.decoding import bias_of, memory_of
from tests.small import SMALL

NAMES = ["dab_deformable_detr_pp_r50", "dn_deformable_detr_pp_r50", "deformable_detr_pp_r50"]
HEADS, DIM, LEVELS, POINTS, LAYERS = SMALL["num_heads"], SMALL["hidden_dim"], 4, 4, 3


class Official:
    """Layers on a state dict with official names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name.removeprefix("transformer."): value for name, value in state.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def mlp(self, name: str, x: Tensor, layers: int) -> Tensor:
        for layer in range(layers - 1):
            x = self.linear(f"{name}.layers.{layer}", x).relu()
        return self.linear(f"{name}.layers.{layers - 1}", x)

    def layer(self, name: str, x: Tensor, pos: Tensor, boxes: Tensor, memory: Tokens, mask: Tensor | None) -> Tensor:
        batch, number, _ = x.shape
        query = (x + pos).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            query, query, x.transpose(0, 1), DIM, HEADS,
            self.state[f"{name}.self_attn.in_proj_weight"], self.state[f"{name}.self_attn.in_proj_bias"],
            None, None, False, 0.0,
            self.state[f"{name}.self_attn.out_proj.weight"], self.state[f"{name}.self_attn.out_proj.bias"],
            attn_mask=mask,
        )  # fmt: skip
        x = self.norm(f"{name}.norm2", x + attended.transpose(0, 1))
        cross, query = f"{name}.cross_attn", x + pos
        value = self.linear(f"{cross}.value_proj", memory.content) * ~memory.padding_mask[..., None]
        offset = self.linear(f"{cross}.sampling_offsets", query).view(batch, number, HEADS, LEVELS, POINTS, 2)
        weight = self.linear(f"{cross}.attention_weights", query).view(batch, number, HEADS, -1).softmax(-1)
        ratio = memory.valid_ratios
        box = boxes[:, :, None] * torch.cat((ratio, ratio), -1)[:, None]
        place = box[:, :, None, :, None, :2] + offset / POINTS * box[:, :, None, :, None, 2:] * 0.5
        sampled = ms_deform_attn(
            value.view(batch, -1, HEADS, DIM // HEADS), memory.shapes, place, weight.view(*offset.shape[:-1])
        )
        x = self.norm(f"{name}.norm1", x + self.linear(f"{cross}.output_proj", sampled))
        inner = self.linear(f"{name}.linear1", x).relu()
        return self.norm(f"{name}.norm3", x + self.linear(f"{name}.linear2", inner))

    def relation(self, source: Tensor, target: Tensor) -> Tensor:
        source, target = source.detach()[:, :, None], target.detach()[:, None]
        near = ((source[..., :2] - target[..., :2]).abs() / (source[..., 2:] + 1e-5) + 1).log()
        size = ((source[..., 2:] + 1e-5) / (target[..., 2:] + 1e-5)).log()
        embedded = sine(torch.cat((near, size), -1), 16, 100.0).permute(0, 3, 1, 2)
        name = "decoder.position_relation_embedding.pos_proj.0"
        return F.conv2d(embedded, self.state[f"{name}.weight"], self.state[f"{name}.bias"]).relu().flatten(0, 1)


def sine(values: Tensor, features: int, scale: float) -> Tensor:
    frequency = 10000 ** (torch.arange(features // 2) * 2 / features)
    angle = values[..., None] * scale / frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-3)


def logit(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return (x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3)).log()


def proposals(net: Official, memory: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, class logits and boxes of all tokens."""
    centres = memory.centres()
    cells = memory.sizes
    side = torch.cat([torch.full((n,), 0.05 * 2**level) for level, n in enumerate(cells)])
    anchor = torch.cat((centres, side[None, :, None].expand(*centres.shape)), -1)
    bad = memory.padding_mask[..., None] | ~((anchor > 0.01) & (anchor < 0.99)).all(-1, keepdim=True)
    features = net.norm("enc_output_norm", net.linear("enc_output", memory.content * ~bad))
    start = (anchor / (1 - anchor)).log().masked_fill(bad, math.inf)
    return (
        features,
        net.linear("encoder_class_head", features),
        (net.mlp("encoder_bbox_head", features, 3) + start).sigmoid(),
    )


def select_rows(values: Tensor, index: Tensor) -> Tensor:
    return torch.stack([row[chosen] for row, chosen in zip(values, index, strict=True)])


def expected(name: str, net: Official, memory: Tokens, noise: Any) -> tuple[Tensor, Tensor]:
    """Return logits and boxes of all decoder layers, denoising queries first."""
    batch, number = len(memory.content), SMALL["num_queries"]
    if name.startswith("dn_"):
        x = torch.cat((net.state["tgt_embed.weight"], torch.zeros(number, 1)), 1).expand(batch, -1, -1)
        boxes = net.state["refpoint_embed.weight"].sigmoid().expand(batch, -1, -1)
    else:
        features, logits, all_boxes = proposals(net, memory)
        score = logits.max(-1)[0] if name.startswith("dab_") else logits[..., 0]
        index = score.topk(number, dim=1)[1]
        boxes, x = select_rows(all_boxes, index).detach(), select_rows(features, index).detach()
    static = ""
    if name.startswith("deformable_"):
        embedded = sine(boxes, DIM // 2, 2 * math.pi)
        x = net.norm("pos_trans_norm", net.linear("pos_trans", embedded))
        static = "decoder.ref_point_head"
        pos = net.norm(f"{static}.1", net.linear(f"{static}.0", embedded))
    blocked = None
    if noise is not None:
        x, boxes = torch.cat((noise.content, x), 1), torch.cat((noise.reference, boxes), 1)
        blocked = (bias_of(noise, number)[0, 0] == -math.inf)[None]
    bias: Tensor | None = None if blocked is None else torch.zeros(blocked.shape[1:]).masked_fill(blocked[0], -math.inf)
    all_logits, all_outputs, before = [], [], boxes
    for layer in range(LAYERS):
        if not static:
            ratio = memory.valid_ratios[:, 0].repeat(1, 2)[:, None]
            pos = net.mlp(
                "decoder.ref_point_head", sine((boxes.detach() * ratio)[..., [1, 0, 2, 3]], DIM // 2, 2 * math.pi), 2
            )
            pos = pos * net.mlp("decoder.query_scale", x, 2) if layer else pos
        x = net.layer(f"decoder.layers.{layer}", x, pos, boxes.detach(), memory, bias)
        all_logits.append(net.linear(f"decoder.class_head.{layer}", x))
        output = (net.mlp(f"decoder.bbox_head.{layer}", x, 3) + logit(boxes)).sigmoid()
        all_outputs.append(output)
        if not static:
            bias = net.relation(before, output)
            bias = bias if blocked is None else bias.masked_fill(blocked, -math.inf)
        before, boxes = output, output.detach()
    return torch.stack(all_logits), torch.stack(all_outputs)


def build(name: str) -> Any:
    """Build a small model with noise on all parameters, so that no initial value hides a mistake."""
    torch.manual_seed(0)
    model = create_model(name, **{**SMALL, "decoder_layers": LAYERS, "dropout": 0.0}, num_feature_levels=LEVELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_decoder_agrees_with_the_repository(name: str, training: bool) -> None:
    """Compare the outputs of all layers and the gradients of all tensors, which also tests where gradients are cut."""
    model = build(name)
    model.train(training)
    generator = torch.Generator().manual_seed(1)
    images, mask = pad_images([torch.randn(3, *size, generator=generator) for size in ((96, 128), (128, 80))])
    with torch.no_grad():
        memory = memory_of(model, images, mask)
    model.encoder.forward = lambda *_: memory
    labels, boxes = torch.tensor([0, 2, 1]), torch.rand(3, 4, generator=generator) * 0.2 + 0.3
    targets = [Target(labels=labels, boxes=boxes), Target(labels=labels[:1], boxes=boxes[:1])]
    noise = None
    if training and name.startswith("dn_"):
        noise = model.denoising(targets)
        assert noise.content.shape == (2, 15, DIM)
        model.denoising.forward = lambda *_: noise

    official = {key: value.clone().requires_grad_() for key, value in detrkit.to_official(model).items()}
    given = None if noise is None else replace(noise, content=noise.content.detach())
    logits, coordinates = expected(name, Official(official), memory, given)
    out = model(images, mask, targets)
    groups = out.groups
    got = [out.logits, out.boxes]
    if noise is not None:
        got = [
            torch.cat(pair, 2)
            for pair in zip([groups["denoising"].logits, groups["denoising"].boxes], got, strict=True)
        ]
    torch.testing.assert_close(got[0], logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(got[1], coordinates, atol=2e-6, rtol=1e-4)
    assert set(groups) == ({"denoising" if name.startswith("dn_") else "encoder"} if training else set())

    weights = [torch.randn(tensor.shape, generator=generator) for tensor in got]
    for outputs in (got, [logits, coordinates]):
        sum((tensor * weight).sum() for tensor, weight in zip(outputs, weights, strict=True)).backward()
    compared = 0
    for key, (theirs,) in detrkit.weights.official.load.official_names(model).items():
        parameter = dict(model.named_parameters()).get(key)
        if parameter is None or official[theirs].grad is None:
            continue
        assert parameter.grad is not None, key
        torch.testing.assert_close(
            parameter.grad, official[theirs].grad, atol=1e-4, rtol=2e-3, msg=lambda m, key=key: f"{key}: {m}"
        )
        compared += 1
    assert compared > 80


def test_proposals_in_the_loss_of_the_encoder() -> None:
    """The selected proposals with their labels; for Deformable DETR++ all tokens, with every label 0."""
    images = torch.randn(1, 3, 64, 64)
    tokens = 64 + 16 + 4 + 1
    for name, number, agnostic in ((NAMES[0], SMALL["num_queries"], False), (NAMES[2], tokens, True)):
        group = build(name).train()(images).groups["encoder"]
        assert (group.logits.shape[2], group.class_agnostic) == (number, agnostic)


def test_the_published_sizes() -> None:
    for name in NAMES:
        config: Any = model_config(name)
        assert (config.num_queries, config.num_classes, config.top_k, config.ffn_dim) == (300, 91, 300, 2048)
        assert (config.dropout, config.loss_class, config.cost_class, config.backbone) == (
            0.0,
            1.0,
            2.0,
            "resnet50.tv2_in1k",
        )
        assert (config.position_offset, config.position_temperature, config.classification) == (-0.5, 10000.0, "focal")
    config = model_config(NAMES[1])
    assert (config.denoising_groups, config.denoising_label_noise, config.denoising_box_noise) == (5, 0.2, 0.4)


def test_the_unused_relation_is_not_trained() -> None:
    model = build("deformable_detr_pp_r50")
    assert not any(parameter.requires_grad for parameter in model.decoder.relation.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dino_lite0", {"query_selection": "static"}, "two_stage must be True; only with query_selection='static'"),
        ("dn_deformable_detr_pp_r50", {"query_selection": "pure"}, "two_stage must be True"),
        ("dino_lite0", {"denoising": "some"}, "denoising must be 'contrastive', 'plain' or 'none', got 'some'"),
        ("deformable_detr_pp_r50", {"two_stage": False}, "two_stage must be True"),
    ],
)
def test_excluded_combinations_say_why(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(name, **options)


@pytest.mark.parametrize(
    ("selection", "denoising"),  # combinations that no published model has
    [
        ("mixed", "plain"),
        ("mixed", "none"),
        ("pure", "contrastive"),
        ("pure", "plain"),
        ("static", "contrastive"),
        ("static", "none"),
    ],
)
def test_options_of_dino_combine(selection: str, denoising: str) -> None:
    torch.manual_seed(0)
    options = {"query_selection": selection, "denoising": denoising, "two_stage": selection != "static"}
    model = create_model("dino_lite0", **SMALL, **options).train()
    criterion = detrkit.losses.build_criterion(model.config)
    target = Target(labels=torch.tensor([0, 1]), boxes=torch.rand(2, 4) * 0.2 + 0.3)
    loss = criterion(model(torch.randn(1, 3, 64, 64), None, [target]), [target]).total
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    other = create_model("dino_lite0", **SMALL, **options)
    detrkit.load_official(other, detrkit.to_official(model))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())
