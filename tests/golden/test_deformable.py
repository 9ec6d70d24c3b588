"""Deformable DETR and DINO with keyed weights against recordings of the official implementations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import detrkit
from detrkit.losses import LossOutput, build_criterion
from detrkit.models import create_model
from detrkit.nn.denoising import Noise
from detrkit.structures import Predictions
from tests.decoding import proposals_of
from tests.golden.harness import Case, layer_name, one_worker_per_case

# Two-stage cases without gaps between proposal scores: the comparison uses the recorded order of proposals.
FORCED = ("deformable_detr_r50_two_stage", "dino_r50_4scale", "dino_pp_r50", "relation_detr_r50")
# The Relation-DETR repository: losses are recorded weighted, and self-attention is biased by relations.
RELATION = ("dino_pp_r50", "relation_detr_r50_q50", "relation_detr_r50")
CASES = [
    "deformable_detr_r50",
    "deformable_detr_r50_refine",
    "deformable_detr_r50_single_scale",
    "deformable_detr_r50_two_stage_q50",
    "deformable_detr_r50_two_stage",
    "dino_r50_4scale_q50",
    "dino_r50_4scale",
    "dino_pp_r50",
    "relation_detr_r50_q50",
    "relation_detr_r50",
]
# DAPE with standard options is Relation-DETR.
STANDARD = {
    f"{name} as dape_r50": {"name": "dape_r50", "sampling": "standard", "relation": "full"}
    for name in ("relation_detr_r50_q50", "relation_detr_r50")
}


def build(case: Case, **overrides: Any) -> Any:
    """Build the model with the recorded weights, dropout 0, and the recorded noise for DINO."""
    if "dino" in case.name and "_pp" not in case.name:
        overrides.setdefault("denoising_box_noise", 0.4)  # as recorded
    if "hybrid_num_proposals" in case.info.get("config", {}):
        overrides["one_to_many_queries"] = case.info["config"]["hybrid_num_proposals"]
        overrides["num_queries"] = case.info["config"]["num_queries"]
    model: Any = create_model(**{"name": case.name, "dropout": 0.0, **case.info["options"], **overrides})
    report = detrkit.load_official(model, case.weights)
    assert report.loaded == len(model.state_dict())
    if hasattr(model, "denoising"):
        model.denoising.draw = lambda *_: recorded_noise(case)
    if case.name in FORCED:
        model.best = lambda proposals, memory, number: recorded_order(case, number)
    return model


def recorded_order(case: Case, number: int) -> Tensor:
    """Return the recorded proposals of the matching queries, or of the one-to-many queries."""
    order = [case.tensors.get(key) for key in ("proposal_topk_index", "train.hybrid.proposal_topk_index")]
    return next(index.long() for index in order if index is not None and index.shape[1] == number)


def recorded_noise(case: Case) -> Noise:
    draws = {key.split(".")[1]: value for key, value in case.tensors.items() if key.startswith("train.draw")}
    flip = draws["draw0"] < 0.25
    labels = torch.zeros(len(flip), dtype=torch.long)
    new = draws["draw1"].long()
    labels[flip] = new if len(new) == int(flip.sum()) else new[flip]  # drawn for the replaced labels, or for all
    return Noise(flip=flip, labels=labels, signs=draws["draw2"].float() * 2 - 1, magnitudes=draws["draw3"])


@pytest.fixture(scope="module", params=one_worker_per_case([*CASES, *STANDARD], slow={"relation_detr_r50 as dape_r50"}))
def case(request: pytest.FixtureRequest, shared: Path, golden_count: dict[str, Any]) -> Case:
    name, _, _ = request.param.partition(" as ")
    case = Case.read(shared, name, golden_count)
    case.info["options"] = STANDARD.get(request.param, {})
    return case


@pytest.fixture(scope="module")
def evaluated(case: Case) -> tuple[Any, Predictions, dict[str, Any]]:
    """The model in evaluation mode, its predictions and internal activations."""
    model = build(case).eval()
    seen: dict[str, Any] = {}
    model.encoder.register_forward_hook(lambda module, args, output: seen.update(memory=output))
    model.backbone.body.register_forward_hook(lambda module, args, output: seen.update(backbone=output))
    for index, projection in enumerate(model.input_proj):
        projection.register_forward_hook(
            lambda module, args, output, index=index: seen.update({f"neck{index}": output.tensor})
        )
    if case.name in RELATION:
        model.decoder.relation.rows = None  # one relation per layer, as recorded; training below uses steps of rows
        model.decoder.relation.register_forward_hook(
            lambda module, args, output: seen.setdefault("relation", []).append(output)
        )
    with torch.no_grad():
        return model, model(*case.batch()), seen


@pytest.fixture(scope="module")
def trained(case: Case) -> tuple[Any, Predictions, LossOutput]:
    """The model in training mode, its predictions and losses."""
    model = build(case).train()
    out = model(*case.batch(), case.targets())
    return model, out, build_criterion(model.config)(out, case.targets())


def test_proposals_are_selected_in_the_recorded_order(case: Case, evaluated: Any) -> None:
    model, _, seen = evaluated
    assert model.config.two_stage == ("proposal_topk_index" in case.tensors)
    if not model.config.two_stage:
        return
    with torch.no_grad():
        memory = seen["memory"]
        proposals = proposals_of(model, memory)
        index = type(model).best(model, proposals, memory, model.config.num_queries)
        stored = case.tensors["proposal_topk_index"].long()
        if case.name.endswith("_q50"):
            case.match("proposal_topk_index", index, stored)
            return
        scores = proposals.logits[..., 0] if model.config.proposal_class_agnostic else proposals.logits.amax(-1)
        chosen, recorded = (scores.gather(1, rows) for rows in (index, stored))
        # if our order differs, the two scores differ by at most the tolerance of both
        case.match("scores of the proposals", chosen, recorded, atol=2 * case.tolerance("logits_abs"))


def test_activations_and_outputs(case: Case, evaluated: Any) -> None:
    model, out, seen = evaluated
    valid = ~seen["memory"].padding_mask
    for key in case.tensors:
        found = re.fullmatch(r"(backbone_body|backbone|neck)\.(?:layer)?(\d)\.channels_0_(\d+)", key)
        if found:
            part, number, step = found[1], int(found[2]), int(found[3])
            level = number - 2 if part == "backbone" else number
            tensor = seen[f"neck{level}"] if part == "neck" else seen["backbone"][level]
            case.close(key, tensor[:, ::step], "other_activations_abs")
    memory, stored = seen["memory"].content[..., ::16], case.tensors["encoder_memory.channels_0_16"]
    case.match("encoder memory", memory[valid], stored[valid], atol=case.tolerance("other_activations_abs"))
    case.close("pred_boxes_all_layers", out.boxes, "boxes_abs")
    case.close("pred_logits_last", out.logits[-1], "logits_abs")
    (key,) = (key for key in case.tensors if key.startswith("pred_logits_all_layers.queries_0_"))
    case.close(key, out.logits[:, :, :: int(key.rsplit("_", 1)[1])], "logits_abs")
    relations = list(seen.get("relation", []))
    assert len(relations) == (5 if case.name in RELATION else 0)
    for layer, relation in enumerate(relations):
        # the embedding multiplies differences of boxes, and their rounding, by 100: start from the recorded boxes
        start = [case.tensors["enc_outputs.pred_boxes"]] if "enc_outputs.pred_boxes" in case.tensors else []
        boxes = [*start, *case.tensors["pred_boxes_all_layers"]]
        if layer + len(start):
            relation = model.decoder.relation(*boxes[layer + len(start) - 1 :][:2])
        (key,) = (key for key in case.tensors if key.startswith(f"relation.{layer}.queries_0_"))
        step = int(key.rsplit("_", 1)[1])
        case.close(key, relation[..., ::step, ::step], "other_activations_abs")


def test_training_outputs(case: Case, trained: Any) -> None:
    """Outputs of matching and denoising queries; some recordings concatenate both, denoising first."""
    _, out, _ = trained
    parts = {"train.": [out]}
    if "denoising" in out.groups:
        noised = out.groups["denoising"]
        parts |= {"train.dn.": [noised], "with_dn": [noised, out]}
    pattern = r"(train\.(?:dn\.)?)pred_(boxes|logits)_(?:last|all_layers_(with_dn))(?:\.queries_0_(\d+))?"
    for key in (key for key in case.tensors if re.match(r"train\.(dn\.)?pred_", key)):
        found = re.fullmatch(pattern, key)
        assert found is not None, key
        tensor = torch.cat([getattr(part, found[2]) for part in parts[found[3] or found[1]]], dim=2)
        tensor = tensor if found[3] else tensor[-1]
        case.close(key, tensor[..., :: int(found[4] or 1), :], f"{found[2]}_abs")


def official_name(term: str) -> str:
    """Rename: loss_class_0_denoising -> loss_class_dn_0, ..._encoder -> ..._enc, ..._one_to_many -> ..._hybrid."""
    found = re.fullmatch(r"(loss_\w+?|cardinality_error|class_error)(_\d+)?(_one_to_many)?(_encoder|_denoising)?", term)
    assert found is not None
    group = {"_encoder": "_enc", "_denoising": "_dn", None: ""}[found[4]]
    return found[1] + group + (found[2] or "") + ("_hybrid" if found[3] else "")


def test_losses_and_indices(case: Case, trained: Any) -> None:
    model, out, output = trained
    weighted = case.name in RELATION
    weights = case.info["weight_dict"]
    recorded = set(case.info["losses"])
    for term, value in output.terms.items():
        name = official_name(term)
        if name not in recorded:
            name = name.replace("loss_class", "loss_ce")
        if name not in recorded:
            name = name.replace("_enc", "_interm")
        if name.startswith(("cardinality", "class_error")) and name not in recorded:
            continue
        case.loss(name, value * weights[name] if weighted else value)
    missing = {name for name in recorded if name.startswith("loss_") and not re.search("_(xy|hw)", name)}
    assert len(missing) == sum(term.startswith("loss_") for term in output.terms)
    (total,) = recorded & {"TOTAL", "TOTAL_weighted"}
    case.loss(total, output.total)
    layers, offset = len(out.logits), 0
    for image, target in enumerate(case.targets()):
        for layer in range(layers):
            name = f"indices.{layer_name(layer, layers)}.{image}"
            if name not in case.tensors:
                call = 0 if layer == layers - 1 else layer + 1
                name = f"train.indices.call{call}.{image}"
                name = name if name in case.tensors else f"train.indices.call{call}.image{image}"
            case.equal(name, output.matches.pairs(layer, image, offset))
        for name in (f"indices.enc.{image}", f"train.indices.call{layers}.{image}"):
            if name in case.tensors:
                case.equal(name, output.groups["encoder"].pairs(0, image, offset))
        for layer in range(layers) if "one_to_many" in output.groups else ():
            call = 7 if layer == layers - 1 else 8 + layer
            pairs = output.groups["one_to_many"].pairs(layer, image, offset * model.config.one_to_many_repeat)
            case.equal(f"train.indices.call{call}.image{image}", pairs)
        offset += len(target)


def test_gradient_norms(case: Case, trained: Any) -> None:
    model, _, output = trained
    output.total.backward()
    case.gradients_of(model)


def test_denoising_queries(case: Case, trained: Any) -> None:
    model, _, _ = trained
    assert hasattr(model, "denoising") == ("train.dn.box_queries" in case.tensors)
    if hasattr(model, "denoising"):
        case.denoising(model)


def test_postprocess(case: Case, evaluated: Any) -> None:
    model, out, _ = evaluated
    case.detections(out, model.config.top_k)


def test_official_weights_come_back_identical(case: Case, evaluated: Any) -> None:
    case.official_weights(evaluated[0])


PERTURBED: dict[str, dict[str, Any]] = {
    "deformable_detr_r50": {"position_offset": 0.0},
    "deformable_detr_r50_refine": {"position_temperature": 9000.0},
    "deformable_detr_r50_single_scale": {"position_offset": 0.0},
    "deformable_detr_r50_two_stage": {"proposal_class_agnostic": False},
    "deformable_detr_r50_two_stage_q50": {"proposal_class_agnostic": False},
    "dino_r50_4scale": {"position_temperature": 10000.0},
    "dino_r50_4scale_q50": {"position_offset": -0.5},
    "dino_pp_r50": {"position_offset": 0.0},
    "relation_detr_r50_q50": {"position_temperature": 9000.0},
    "relation_detr_r50": {"position_offset": 0.0},
}


def test_a_perturbed_constant_is_detected(case: Case) -> None:
    model = build(case, **PERTURBED[case.name]).eval()
    if hasattr(model, "best"):
        model.__dict__.pop("best", None)  # the order is part of this test
    with torch.no_grad():
        out = model(*case.batch())
    with pytest.raises(AssertionError, match="pred_boxes_all_layers"):
        case.close("pred_boxes_all_layers", out.boxes, "boxes_abs")
