"""Reads recorded outputs of official implementations and holds ours against them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import detrkit
from detrkit.inference.postprocess import select
from detrkit.losses import Focal
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.structures import Predictions, Target, pad_images
from detrkit.weights.official import official_names
from tests.decoding import bias_of

_INDEX_NAMES = ("backbone_body", "encoder_memory", "pred", "indices", "postprocess", "roi", "label_aug")


@cache
def keyed(folder: Path) -> Any:
    """The module that makes weights from names and images from seeds."""
    spec = importlib.util.spec_from_file_location("keyed_weights", folder / "keyed_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Case:
    """One golden case; every comparison is counted."""

    name: str
    folder: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]
    count: dict[str, Any]

    @classmethod
    def read(cls, shared: Path, name: str, count: dict[str, Any]) -> Case:
        folder = shared / "golden"
        info = json.loads((folder / name / f"{name}.json").read_text())
        return cls(name, folder, info, load_file(folder / name / f"{name}.safetensors"), count)

    def state_dict(self) -> dict[str, Tensor]:
        """The official state dict, aliases included."""
        make = keyed(self.folder).keyed_array
        sharp = self.info.get("sharp_attention", False)
        aliases, kept = self.info.get("aliases", {}), self.info.get("kept_tensors", {})
        return {
            key: self.tensors[kept[key]] if key in kept else torch.from_numpy(make(aliases.get(key, key), shape, sharp))
            for key, shape in self.info["state_dict"].items()
        }

    def batch(self) -> tuple[Tensor, Tensor]:
        """Padded images and padding mask."""
        make = keyed(self.folder).keyed_image
        images = [
            torch.from_numpy(make(seed, *size))
            for seed, size in zip(self.info["image_seeds"], self.info["image_sizes_hw"], strict=True)
        ]
        if "padding_mask" not in self.tensors:  # the Relation-DETR repository rounds the canvas up
            return pad_images(images, size_divisor=32)
        canvas, mask = pad_images(images)
        self.equal("padding_mask", mask.to(torch.uint8))
        return canvas, mask

    def targets(self, prefix: str = "") -> list[Target]:
        """Targets of the case, one an image."""
        result = []
        while (key := f"{prefix}target.{len(result)}.boxes") in self.tensors:
            labels = self.tensors[key.replace(".boxes", ".labels")]
            result.append(Target(labels=labels, boxes=self.tensors[key]))
        for index, (height, width) in enumerate(self.info.get("image_sizes_hw", []) if not result else []):
            name = f"target_xyxy_pixels.{index}"
            boxes = xyxy_to_cxcywh(self.tensors[f"{name}.boxes"] / torch.tensor([width, height] * 2))
            result.append(Target(labels=self.tensors[f"{name}.labels"], boxes=boxes))
        return result

    def close(self, name: str, actual: Tensor, tolerance: float) -> None:
        """``actual`` equals the stored tensor within an absolute tolerance."""
        self.match(name, actual, self.tensors[name], atol=tolerance, rtol=0.0)

    def equal(self, name: str, actual: Tensor) -> None:
        """``actual`` equals the stored integers."""
        self.match(name, actual.to(self.tensors[name].dtype), self.tensors[name], atol=0.0, rtol=0.0)

    def match(self, name: str, actual: Tensor, expected: Tensor, *, atol: float, rtol: float) -> None:
        """Compares and counts."""
        self.count["cases"].add(self.name)
        self.count["tensors"] += 1
        torch.testing.assert_close(
            actual.detach(), expected, atol=atol, rtol=rtol, msg=lambda text: f"{self.name}: {name}\n{text}"
        )

    def objects(self, prefix: str, scores: Tensor, labels: Tensor, boxes: Tensor) -> None:
        """Detections in pixels equal the stored ones; where scores tie by rounding, in any order."""
        stored = [self.tensors[f"{prefix}.{key}"] for key in ("scores", "labels", "boxes")]
        tolerance = self.info["tolerance"]
        distance = (boxes[:, None] - stored[2]).abs().amax(-1) + 1e3 * (labels[:, None] != stored[1])
        distance = distance + 1e3 * ((scores[:, None] - stored[0]).abs() > tolerance.get("scores_abs", 1e-5))
        ours, theirs = (torch.from_numpy(index) for index in linear_sum_assignment(distance.numpy()))
        for key, mine, recorded in zip(("scores", "labels", "boxes"), (scores, labels, boxes), stored, strict=True):
            # in pixels what the case allows for boxes in [0, 1]: where that is 1e-4, threads alone move some by 0.01
            pixels = max(1e-2, tolerance.get("boxes_abs", 0.0) * float(stored[2].max()))
            atol = {"scores": tolerance.get("scores_abs", 1e-5), "labels": 0.0, "boxes": pixels}[key]
            self.match(f"{prefix}.{key}", mine[ours], recorded[theirs], atol=atol, rtol=0.0)

    def loss(self, name: str, actual: Tensor | float, expected: float | None = None) -> None:
        """A loss agrees to the case's relative (or absolute) tolerance."""
        expected = self.info["losses"][name] if expected is None else expected
        tolerance = self.info["tolerance"]
        rtol, atol = tolerance.get("losses_rel", 0.0), tolerance.get("abs", 1e-7)
        self.match(name, torch.as_tensor(actual).detach().float(), torch.tensor(expected), rtol=rtol, atol=atol)

    def gradients(self, norms: dict[str, float]) -> None:
        """Gradient norms by official name, those that carry information."""
        expected = self.info["grad_l2_norm"]
        tolerance = self.info["tolerance"]["grad_l2_norm_rel"]
        floor = 1e-4 * max(expected.values())
        assert set(norms) == set(expected), set(norms) ^ set(expected)
        for name, value in expected.items():
            if value > floor:
                self.match(
                    f"gradient of {name}", torch.tensor(norms[name]), torch.tensor(value), rtol=tolerance, atol=0
                )

    def gradients_of(self, model: Any) -> None:
        """Gradient norms of the parameters that learn, after backward."""
        names, norms = official_names(model), {}
        for key, parameter in model.named_parameters():
            found = [name for name in names[key] if name in self.info["grad_l2_norm"]]
            if found and parameter.requires_grad:
                norms[found[0]] = float(parameter.grad.norm()) if parameter.grad is not None else 0.0
        self.gradients(norms)

    def denoising(self, model: Any) -> None:
        """The queries that a model makes from the objects with the recorded noise."""
        queries = model.denoising(self.targets())
        boxes = torch.log(queries.reference / (1 - queries.reference))
        self.match("train.dn.box_queries", boxes, self.tensors["train.dn.box_queries"], atol=2e-3, rtol=2e-4)
        self.close("train.dn.label_queries.channels_0_16", queries.content[..., ::16], 1e-6)
        packed = np.packbits((bias_of(queries, model.config.num_queries)[0, 0] == -torch.inf).numpy(), axis=1)
        self.equal("train.dn.attn_mask_packed_bits", torch.from_numpy(packed))

    def detections(self, out: Predictions, top_k: int) -> None:
        """The best detections of a focal model, without NMS."""
        for image, (height, width) in enumerate(self.info["image_sizes_hw"]):
            if f"target.{image}.orig_size" in self.tensors:
                height, width = self.tensors[f"target.{image}.orig_size"].tolist()
            found = select(
                out.logits[-1, image],
                out.boxes[-1, image],
                classes=Focal(),
                top_k=top_k,
                nms=None,
                nms_decay=None,
            )
            boxes = found.boxes * torch.tensor([width, height, width, height])
            self.objects(f"postprocess.{image}", found.scores, found.labels, boxes)

    def official_weights(self, model: Any) -> None:
        """A model gives back the official file that it has read, to the bit."""
        official, ours = self.state_dict(), detrkit.to_official(model)
        assert set(ours) == set(official)
        for name, value in official.items():
            self.match(name, ours[name], value.to(ours[name].dtype), atol=0.0, rtol=0.0)


def official_terms(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our loss names -> the names in the recordings."""
    return {name.replace("loss_class", "loss_ce"): value for name, value in terms.items()}


def layer_name(layer: int, layers: int) -> str:
    """What the recordings call a decoder layer: aux0, aux1, …, last."""
    return "last" if layer == layers - 1 else f"aux{layer}"


def numpy_case(shared: Path, name: str) -> dict[str, np.ndarray]:
    """One of the small, older recordings."""
    with np.load(shared / "golden" / "small" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}
