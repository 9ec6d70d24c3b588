"""The older, smaller recordings: fewer layers, 64 x 96 images, another rule for weights (spec K)."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from detrkit.inference.postprocess import select
from detrkit.losses import Problem, build_classes, build_criterion
from detrkit.models import create_model
from detrkit.nn.detr_masks import DETRMaskHead
from detrkit.structures import Target, pad_images
from detrkit.weights.official.load import official_names
from tests.golden.harness import numpy_case, official_terms

TOLERANCE = 1e-4  # from the README of the fixtures

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr_r50", {}),
    "detr_segm": ("detr_r50_panoptic", {"num_classes": 91}),
    "detr_prenorm": ("detr_r50", {"pre_norm": True}),
    "de_detr": ("de_detr_r50", {"num_classes": 9}),
    "de_detr_norefine": ("de_detr_r50", {"num_classes": 9, "refine_boxes": False}),
    "de_detr_lvl1": ("de_detr_r50", {"num_classes": 9, "num_feature_levels": 1}),
    "dela_detr": ("dela_detr_r50", {"num_classes": 9}),
    "cond_detr": ("conditional_detr_r50", {}),
    "de_cond_detr": ("de_conditional_detr_r50", {"num_classes": 9}),
    "deformable_detr": ("deformable_detr_r50", {}),
    "deformable_detr_refine": ("deformable_detr_r50_refine", {}),
    "deformable_detr_twostage": ("deformable_detr_r50_two_stage", {}),
}
EMBEDDINGS = ("query_embed", "level_embed", "row_embed", "col_embed", "sampling_offsets.bias")


def keyed(key: str, shape: tuple[int, ...], shared_heads: bool) -> Tensor:
    """Return the weight of an official key by the older rule."""
    name = key
    for head in ("bbox_embed.", "class_embed.", "ref_point_head."):
        if name.startswith(f"transformer.decoder.{head}"):
            name = name.removeprefix("transformer.decoder.")
    if shared_heads:
        name = re.sub(r"(class_embed|bbox_embed)\.\d+", r"\1.0", name)
    v = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape)
    if name.endswith("running_var"):
        v = 1 + 0.1 * np.abs(v)
    elif name.endswith("running_mean"):
        v = 0.1 * v
    elif not any(part in name for part in EMBEDDINGS):
        if len(shape) == 1:
            v = 1 + 0.1 * v if name.endswith("weight") else 0.1 * v
        else:
            v = v / math.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(v)).float()


def rectangles(number: int, image: int) -> Tensor:
    """(n, 80, 96): the top left of the image, half its height and a third of its width, is every object's mask."""
    height, width = ((64, 96), (80, 72))[image]
    masks = torch.zeros(number, 80, 96, dtype=torch.bool)
    masks[:, : height // 2, : width // 3] = True
    return masks


@pytest.mark.parametrize("name", CASES)
def test_small_case(name: str, shared: Path, golden_count: dict[str, Any]) -> None:
    expected = numpy_case(shared, name)
    base, overrides = CASES[name]
    size = {"encoder_layers": 2, "decoder_layers": 3, "ffn_dim": 512, "num_queries": 10, "dropout": 0.0}
    model = create_model(base, **size, **overrides).eval()
    shared_heads = not getattr(model.config, "refine_boxes", True)
    state = {
        key: keyed(official_names(model)[key][0], tuple(value.shape), shared_heads)
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)

    random = np.random.RandomState(0)
    images = [torch.from_numpy(random.standard_normal(shape)).float() for shape in ((3, 64, 96), (3, 80, 72))]
    random = np.random.RandomState(1)
    targets = []
    for n in (3, 2):
        centre = random.uniform(0.3, 0.7, (n, 2))
        boxes = np.concatenate((centre, random.uniform(0.1, 0.5, (n, 2))), axis=1)
        labels, number = torch.from_numpy(random.randint(1, 9, n)), len(targets)
        targets.append(Target(labels=labels, boxes=torch.from_numpy(boxes).float(), masks=rectangles(n, number)))
    model.train("enc_boxes" in expected)  # proposals are returned in training only; without dropout all else is equal
    with torch.no_grad():
        out = model(*pad_images(images))

    golden_count["cases"].add(f"small/{name}")

    def compare(key: str, actual: Tensor) -> None:
        golden_count["tensors"] += 1
        np.testing.assert_allclose(
            actual.detach().numpy(), expected[key], atol=TOLERANCE, rtol=TOLERANCE, err_msg=f"{name}: {key}"
        )

    for layer, prefix in enumerate(("aux0_", "aux1_", "pred_")):
        compare(f"{prefix}logits", out.logits[layer])
        compare(f"{prefix}boxes", out.boxes[layer])
    if out.masks is not None:
        compare("pred_masks", out.masks.dense())
    criterion = build_criterion(model.config)
    output = criterion(out, criterion.prepare(targets))
    terms = official_terms(output.terms)
    recorded = {key.removeprefix("loss/") for key in expected if key.startswith("loss/")} - {"cardinality_error_enc"}
    if "enc_boxes" in expected:
        terms = {key.replace("_encoder", "_enc"): value for key, value in terms.items()}
        compare("enc_boxes", out.groups["encoder"].boxes[0])
        compare("enc_logits0", out.groups["encoder"].logits[0, ..., :2])
    assert recorded == set(terms), recorded ^ set(terms)
    for key in recorded:
        compare(f"loss/{key}", terms[key])
    matches = criterion.matcher(Problem.of(out, targets))  # recorded without repetition
    pairs = [matches.pairs(2, image, offset) for image, offset in ((0, 0), (1, 3))]
    compare("match_src", torch.cat([query for query, _ in pairs]))
    compare("match_tgt", torch.cat([target for _, target in pairs]))
    classes = build_classes(model.config)
    recorded_in_query_order = model.config.nms is None and classes.exclusive
    for image, (height, width) in enumerate(((64, 96), (80, 72))):
        if f"post{image}_scores" not in expected:
            continue
        found = select(
            out.logits[-1, image],
            out.boxes[-1, image],
            classes=classes,
            top_k=None if recorded_in_query_order else 100,
            nms=model.config.nms,
            nms_decay=model.config.nms_decay,
        )
        if recorded_in_query_order:
            order = found.queries.argsort()
            found = type(found)(*(value[order] for value in found))
        boxes = found.boxes * torch.tensor([width, height, width, height])
        rows = torch.cat((found.scores[:, None], found.labels[:, None], boxes), dim=1).numpy()
        wanted = [expected[f"post{image}_{key}"] for key in ("scores", "labels", "boxes")]
        wanted = np.concatenate((wanted[0][:, None], wanted[1][:, None], wanted[2]), axis=1)
        golden_count["tensors"] += 3
        assert rows.shape == wanted.shape
        # Scores equal up to rounding can be in another order: pair every recorded object with its nearest.
        distance = np.abs(rows[:, None] - wanted[None]).max(-1)
        pairs = linear_sum_assignment(distance)
        assert distance[pairs].max() < TOLERANCE * max(width, height)
        np.testing.assert_allclose(rows[:, 0], wanted[:, 0], atol=TOLERANCE)


def test_a_perturbed_norm_of_the_mask_head_is_noticed(
    shared: Path, golden_count: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes agree still; masks do not."""
    make = create_model

    def perturbed(*args: Any, **options: Any) -> Any:
        model = make(*args, **options)
        assert isinstance(model.mask_head, DETRMaskHead)
        for norm in model.mask_head.convolution.norms:
            assert isinstance(norm, nn.GroupNorm)
            norm.eps = 1e-3
        return model

    monkeypatch.setattr("tests.golden.test_small.create_model", perturbed)
    with pytest.raises(AssertionError, match="detr_segm: pred_masks"):
        test_small_case("detr_segm", shared, golden_count)
