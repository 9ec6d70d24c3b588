"""Reads recorded outputs of official implementations and compares ours with them.

Tolerances are those of the fixtures. Tests set no tighter ones, since other processors round differently.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import detrkit
from detrkit.inference.postprocess import select
from detrkit.losses import Focal
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.structures import Predictions, Target, pad_images
from detrkit.weights.official.load import official_names
from tests.decoding import bias_of


@cache
def keyed(folder: Path) -> Any:
    """Load the module that makes weights from names and images from seeds."""
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

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The official state dict, aliases included."""
        make = keyed(self.folder).keyed_array
        sharp = self.info.get("sharp_attention", False)
        aliases, kept = self.info.get("aliases", {}), self.info.get("kept_tensors", {})
        return {
            key: self.tensors[kept[key]] if key in kept else torch.from_numpy(make(aliases.get(key, key), shape, sharp))
            for key, shape in self.info["state_dict"].items()
        }

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return padded images and padding mask."""
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
        """Return the targets of the case, one per image."""
        result = []
        while (key := f"{prefix}target.{len(result)}.boxes") in self.tensors:
            labels = self.tensors[key.replace(".boxes", ".labels")]
            masks = self.tensors.get(key.replace(".boxes", ".masks"))
            result.append(Target(labels=labels, boxes=self.tensors[key], masks=self._on_canvas(masks)))
        for index, (height, width) in enumerate(self.info.get("image_sizes_hw", []) if not result else []):
            name = f"target_xyxy_pixels.{index}"
            boxes = xyxy_to_cxcywh(self.tensors[f"{name}.boxes"] / torch.tensor([width, height] * 2))
            result.append(Target(labels=self.tensors[f"{name}.labels"], boxes=boxes))
        return result

    def _on_canvas(self, masks: Tensor | None) -> Tensor | None:
        """Masks of an image, padded as the batch is."""
        if masks is None or "padded_hw" not in self.info:
            return masks
        height, width = self.info["padded_hw"]
        return nn.functional.pad(masks.bool(), (0, width - masks.shape[2], 0, height - masks.shape[1]))

    def tolerance(self, kind: str = "abs") -> float:
        """Return the tolerance of one kind of numbers: ``boxes_abs``, ``losses_rel``, …; operators: ``abs``."""
        value: float = self.info["tolerance"][kind]
        return value

    def close(self, name: str, actual: Tensor, kind: str = "abs", *, times: float = 1.0) -> None:
        """Check that ``actual`` equals the stored tensor within ``times`` the absolute tolerance of this kind."""
        self.match(name, actual, self.tensors[name], atol=times * self.tolerance(kind))

    def equal(self, name: str, actual: Tensor) -> None:
        """Check that ``actual`` equals the stored integers."""
        self.match(name, actual.to(self.tensors[name].dtype), self.tensors[name])

    def match(self, name: str, actual: Tensor, expected: Tensor, *, atol: float = 0.0, rtol: float = 0.0) -> None:
        """Compare, exactly unless a tolerance is given, and count the comparison."""
        self.count["cases"].add(self.name)
        self.count["tensors"] += 1
        torch.testing.assert_close(
            actual.detach(), expected, atol=atol, rtol=rtol, msg=lambda text: f"{self.name}: {name}\n{text}"
        )

    def objects(self, prefix: str, scores: Tensor, labels: Tensor, boxes: Tensor) -> None:
        """Check that detections in pixels equal the stored ones; scores equal up to rounding can be in any order."""
        stored = [self.tensors[f"{prefix}.{key}"] for key in ("scores", "labels", "boxes")]
        scores_abs, size = self.tolerance("scores_abs"), float(stored[2].max())
        distance = (boxes[:, None] - stored[2]).abs().amax(-1) + 1e3 * (labels[:, None] != stored[1])
        distance = distance + 1e3 * ((scores[:, None] - stored[0]).abs() > scores_abs)
        ours, theirs = (torch.from_numpy(index) for index in linear_sum_assignment(distance.numpy()))
        # tolerance of boxes in [0, 1], in pixels: if it is 1e-4, the number of threads alone moves some boxes by 0.01
        pixels = max(self.tolerance("boxes_in_pixels_abs"), self.tolerance("boxes_abs") * size)
        for key, mine, recorded in zip(("scores", "labels", "boxes"), (scores, labels, boxes), stored, strict=True):
            atol = {"scores": scores_abs, "labels": 0.0, "boxes": pixels}[key]
            self.match(f"{prefix}.{key}", mine[ours], recorded[theirs], atol=atol)

    def loss(self, name: str, actual: Tensor | float, expected: float | None = None) -> None:
        """Check a loss with the relative tolerance of the case, or the absolute one of operators."""
        expected = self.info["losses"][name] if expected is None else expected
        tolerance = self.info["tolerance"]
        rtol, atol = tolerance.get("losses_rel", 0.0), tolerance.get("abs", 1e-7)
        self.match(name, torch.as_tensor(actual).detach().float(), torch.tensor(expected), rtol=rtol, atol=atol)

    def gradients(self, norms: dict[str, float]) -> None:
        """Check gradient norms by official name, except those that are zero up to rounding."""
        expected = self.info["grad_l2_norm"]
        tolerance = self.tolerance("grad_l2_norm_rel")
        # the fixtures' "compare above": smaller norms are zero in exact arithmetic, as of the bias of keys
        floor = 1e-4 * max(expected.values())
        assert set(norms) == set(expected), set(norms) ^ set(expected)
        for name, value in expected.items():
            if value > floor:
                self.match(f"gradient of {name}", torch.tensor(norms[name]), torch.tensor(value), rtol=tolerance)

    def gradients_of(self, model: Any) -> None:
        """Check the gradient norms of trainable parameters after backward."""
        names, norms = official_names(model), {}
        for key, parameter in model.named_parameters():
            found = [name for name in names[key] if name in self.info["grad_l2_norm"]]
            if found and parameter.requires_grad:
                norms[found[0]] = float(parameter.grad.norm()) if parameter.grad is not None else 0.0
        self.gradients(norms)

    def denoising(self, model: Any) -> None:
        """Check the denoising queries that a model makes from the objects with the recorded noise."""
        queries = model.denoising(self.targets())
        # recorded as logits, of boxes as near as 1e-3 to 0 and 1: compared as boxes
        self.match(
            "train.dn.box_queries",
            queries.reference,
            self.tensors["train.dn.box_queries"].sigmoid(),
            atol=self.tolerance("boxes_abs"),
        )
        self.close("train.dn.label_queries.channels_0_16", queries.content[..., ::16], "other_activations_abs")
        packed = np.packbits((bias_of(queries, model.config.num_queries)[0, 0] == -torch.inf).numpy(), axis=1)
        self.equal("train.dn.attn_mask_packed_bits", torch.from_numpy(packed))

    def detections(self, out: Predictions, top_k: int) -> None:
        """Check the best detections of a focal model, without NMS."""
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
        """Check that exported official weights equal the loaded ones bit for bit."""
        official, ours = self.weights, detrkit.to_official(model)
        assert set(ours) == set(official)
        for name, value in official.items():
            self.match(name, ours[name], value.to(ours[name].dtype))


def one_worker_per_case(names: Iterable[str], *, slow: Container[str] = ()) -> list[Any]:
    """Return parameters of a fixture: all tests of one case run on one worker, which sets it up once."""
    return [
        pytest.param(name, marks=[pytest.mark.xdist_group(f"golden {name}"), *[pytest.mark.slow] * (name in slow)])
        for name in names
    ]


def official_terms(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our losses to the names in the recordings."""
    return {name.replace("loss_class", "loss_ce"): value for name, value in terms.items()}


def layer_name(layer: int, layers: int) -> str:
    """Return the name of a decoder layer in the recordings: aux0, aux1, …, last."""
    return "last" if layer == layers - 1 else f"aux{layer}"


def numpy_case(shared: Path, name: str) -> dict[str, np.ndarray]:
    """Read one of the small, older recordings."""
    with np.load(shared / "golden" / "small" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}
