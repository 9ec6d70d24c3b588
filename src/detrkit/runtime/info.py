"""What an exported model says about itself: the same JSON in ONNX, OpenVINO and torch.export files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from detrkit.errors import CheckpointError
from detrkit.structures.categories import Categories

__all__ = [
    "FORMATS_OF_SUFFIX",
    "METADATA_KEY",
    "SUFFIX_OF_FORMAT",
    "ArtefactInfo",
    "Preprocess",
    "Rules",
    "check_raw",
    "is_artefact",
]

METADATA_KEY = "detrkit"
"""Where the JSON is: ``metadata_props`` of ONNX, ``rt_info`` of OpenVINO, an extra file of torch.export."""

FORMATS_OF_SUFFIX = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch-export"}
"""Ending of a file -> format."""

SUFFIX_OF_FORMAT = {form: suffix for suffix, form in FORMATS_OF_SUFFIX.items()}

_SCHEMA = "detrkit-artefact-1"


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From an upright RGB image to the input of the model. Sizes in pixels."""

    short_side: int
    max_side: int | None
    resize: Literal["round", "float32_truncate"]
    """"round": :func:`~detrkit.data.sizes.resize_shape` and Pillow's bilinear resampling; "float32_truncate":
    :func:`~detrkit.data.sizes.truncated_shape` and antialiased bilinear resampling in float32, rounded once."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size_divisor: int = 1
    """Images are padded at the right and bottom to multiples of this."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """From raw outputs to detections."""

    scores: Literal["softmax", "sigmoid"]
    """"softmax": a query is one object, and the last logit is no-object; "sigmoid": every class has its own score."""
    top_k: int
    nms: float | None = None
    nms_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class ArtefactInfo:
    """Metadata of an exported model.

    Attributes:
        name: registry name of the model.
        task: "det", "inst", "sem" or "pan".
        config: flat configuration of the model, as in checkpoints.
        categories: classes in label order with their original ids; None: the checkpoint names none.
        preprocess: resize, normalisation and padding.
        rules: scores, top-k and NMS.
        precision: "fp32", "fp16" (weights) or "int8".
        batch: images per call; None: any number.
        size: (height, width) of the only canvas; None: any, from ``least_side`` on.
        least_side: smallest side of a canvas where ``size`` is None.
        with_postprocess: the file takes RGB values from 0 to 255 and gives boxes, scores and labels.
        thresholds: score thresholds stored in the checkpoint, if any.
        licence: licence of the weights, if known.
        recipe_sha256: hash of the recipe of the training, if the checkpoint has one.
        version: version of detrkit that wrote the file.
    """

    name: str
    task: str
    config: dict[str, Any]
    categories: Categories | None
    preprocess: Preprocess
    rules: Rules
    precision: str = "fp32"
    batch: int | None = None
    size: tuple[int, int] | None = None
    least_side: int = 1
    with_postprocess: bool = False
    thresholds: dict[str, Any] | None = field(default=None)
    licence: str | None = None
    recipe_sha256: str | None = None
    version: str = ""

    def to_json(self) -> str:
        """The JSON that files carry."""
        values = asdict(self) | {"categories": None if self.categories is None else self.categories.to_json()}
        return json.dumps({"schema": _SCHEMA, **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> ArtefactInfo:
        """Read the JSON of a file.

        Raises:
            CheckpointError: it is missing, damaged, or of another version of the schema.
        """
        if not text:
            raise CheckpointError(f"{path}: no detrkit metadata; only files that 'detrkit export' wrote can be run")
        try:
            values = json.loads(text)
        except ValueError as error:
            raise _damaged(path, f"is no JSON ({error})") from error
        if not isinstance(values, dict):
            raise _damaged(path, f"is a {type(values).__name__}, not a mapping")
        schema = values.pop("schema", None)
        if schema != _SCHEMA:
            raise CheckpointError(
                f"{path}: written with metadata '{schema}', but this version of detrkit reads '{_SCHEMA}'; export the "
                "checkpoint again"
            )
        try:
            return cls._of(values)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise _damaged(path, f"cannot be used ({error})") from error

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> ArtefactInfo:
        for key, kinds in (("name", (str,)), ("config", (dict,)), ("batch", (int, NoneType)), ("least_side", (int,))):
            if not isinstance(values[key], kinds):
                raise TypeError(f"{key} = {values[key]!r:.60}")
        rows, size = values["categories"], values["size"]
        preprocess: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values["preprocess"].items()
        }
        return cls(
            **{
                **values,
                "categories": None if rows is None else Categories.from_json(rows),
                "preprocess": Preprocess(**preprocess),
                "rules": Rules(**values["rules"]),
                "size": None if size is None else (int(size[0]), int(size[1])),
            }
        )

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the canvas that holds an image of this size."""
        if self.size is not None:
            return self.size
        divisor = self.preprocess.size_divisor
        tall, wide = (-(-max(side, self.least_side) // divisor) * divisor for side in (height, width))
        return tall, wide


def check_raw(info: ArtefactInfo, path: Path) -> None:
    """Refuse a file with post-processing inside where thresholds, NMS and tasks are chosen.

    Raises:
        CheckpointError: it has.
    """
    if info.with_postprocess:
        raise CheckpointError(
            f"{path}: has its post-processing inside, so that thresholds, NMS and tasks cannot be chosen here; run "
            "it with detrkit.runtime.LightPredictor, or export it without --with-postprocess"
        )


def is_artefact(path: str | Path) -> bool:
    """Whether a path has the ending of an exported model."""
    return Path(path).suffix.lower() in FORMATS_OF_SUFFIX


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: its detrkit metadata {problem}; export the checkpoint again")
