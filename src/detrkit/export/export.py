"""Export of a checkpoint: trace, convert, write, and prove."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from detrkit import __version__
from detrkit.data import load_dataset
from detrkit.data.images import read_image
from detrkit.data.records import ImageRecord
from detrkit.errors import CheckpointError, DataError, RunError
from detrkit.evaluation.finished import evaluate_finished
from detrkit.evaluation.loop import evaluate_model
from detrkit.export.example_images import example_images
from detrkit.export.onnx_file import OPSETS, onnx_model, with_half_weights, write_onnx
from detrkit.export.openvino_files import Batch, openvino_model, quantized, write_openvino
from detrkit.export.parity import Comparison, Parity, prove, prove_finished
from detrkit.export.program import LEAST_SIDE, output_names, trace
from detrkit.files import replacing, write_json
from detrkit.inference.modes import in_single_precision
from detrkit.inference.preprocess import eval_transform
from detrkit.losses.classes import build_classes
from detrkit.models.config import Architecture, DetectorConfig
from detrkit.models.detector import Detector
from detrkit.nn.lora import merge_low_rank
from detrkit.runtime.engines import open_engine
from detrkit.runtime.info import METADATA_KEY, SUFFIX_OF_FORMAT, ArtefactInfo, Preprocess, Rules, is_artefact
from detrkit.runtime.light_predictor import LightPredictor
from detrkit.runtime.prepare import on_canvas
from detrkit.weights import open_checkpoint
from detrkit.weights.artefact import open_artefact
from detrkit.weights.find import find_checkpoint
from detrkit.weights.ours import is_ours, read_info

__all__ = ["ExportFormat", "ExportPrecision", "ExportResult", "export_model"]

ExportFormat = Literal["onnx", "openvino", "torch-export"]
ExportPrecision = Literal["fp32", "fp16", "int8"]

_PROOF_IMAGES = 8
_PRECISIONS = {"onnx": ("fp32", "fp16"), "openvino": ("fp32", "fp16", "int8"), "torch-export": ("fp32",)}
_CALIBRATION_IMAGES = 300  # of the user's images, at most


@dataclass(frozen=True)
class ExportResult:
    """A written file and its proof, if one was wanted."""

    path: Path
    info: ArtefactInfo
    parity: Parity | None


def export_model(
    checkpoint: str | Path | Detector,
    out: str | Path,
    *,
    format: ExportFormat,
    precision: ExportPrecision = "fp32",
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    with_postprocess: bool = False,
    images: str | Path | None = None,
    data: str | Path | None = None,
    opset: int = OPSETS[0],
    licence: str | None = None,
    proof: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Export a checkpoint and prove on images that the file gives the same boxes.

    ``parity.json`` beside the file has the proof. The file stays if the proof fails, for a closer look.

    Args:
        checkpoint: our or an official checkpoint, a run folder, a name, or a model in memory.
        out: the file: ``.onnx``, ``.xml`` (and ``.bin`` beside it), or ``.pt2``.
        format: "onnx", "openvino" or "torch-export".
        precision: "fp32"; "fp16": weights in half precision, computed as the runtime likes; "int8": OpenVINO, quantised
            by NNCF with ``images`` or the images of ``data``.
        batch: images per call; None: any number.
        size: (height, width) of the canvas; None: any.
        with_postprocess: normalisation, top-k and NMS inside the file.
        images: folder of images for the proof and for int8; None: those of ``data``, else the embedded blood smears.
        data: data set whose validation images give the AP (PQ, mIoU) of checkpoint and file.
        opset: of ONNX.
        licence: licence of the weights, for the metadata; None: what the checkpoint says.
        proof: run the proof.
        say: called with a line after every step.

    Raises:
        DataError: int8 without images, an option that the format does not have, or no images in the folder.
        CheckpointError: the checkpoint cannot be used.
        RunError: the model cannot be converted, a file cannot be written, or fp32 differs by more than the tolerances.
    """
    out = Path(out)
    _check(out, format, precision, size, batch, images=images, data=data)
    if opset not in OPSETS:
        raise DataError(f"opset {opset}: give one from {OPSETS[0]} to {OPSETS[-1]}")
    if isinstance(checkpoint, Detector):
        path, model = None, copy.deepcopy(checkpoint)  # the caller's stays where it is
        merge_low_rank(model)
    else:
        path = find_checkpoint(checkpoint)
        if is_artefact(path):
            raise CheckpointError(f"{path}: is an exported model already; give the checkpoint that it was made from")
        model = open_checkpoint(path)
    model = in_single_precision(model).cpu().eval()
    divisor = model.config.input.size_divisor
    if size is not None and any(side % divisor for side in size):
        near = " ".join(str(-(-side // divisor) * divisor) for side in size)
        raise DataError(f"--size {size[0]} {size[1]}: this model needs multiples of {divisor}, for example {near}")
    info = _info(model, path, precision, batch, size, with_postprocess=with_postprocess, licence=licence)
    # first what may be wrong with the user's images: tracing takes minutes
    pictures = example_images(images, data) if proof or precision == "int8" else []
    transformed = list(_prepared(model, pictures[:_CALIBRATION_IMAGES], info))
    validation, before = None, None
    if data is not None and proof:
        task = "det" if with_postprocess else model.config.architecture.task
        validation = load_dataset(data, split="val", task=task)
        say(f"scoring the checkpoint on {validation.name}")
        before = evaluate_model(model, validation)
    say(f"tracing {info.name}")
    program = trace(model, batch=batch, size=size, with_postprocess=with_postprocess)
    say(f"writing {out}")
    _write(program, out, info, format, model=model, images=transformed, opset=opset)
    if not proof:
        return ExportResult(out, info, None)
    say("comparing the file with the checkpoint")
    parity = Parity(file=out.name, format=format, precision=precision)
    batches = (1, 3) if batch is None else (batch,)
    compare: Callable[..., list[Comparison]]
    if with_postprocess:
        engine = open_engine(out)
        compare = partial(prove_finished, model, engine)
        score = partial(evaluate_finished, LightPredictor(out, engine=engine))
    else:
        exported = open_artefact(out)
        compare, score = partial(prove, model, exported), partial(evaluate_model, exported)
    parity.comparisons += compare(transformed[:_PROOF_IMAGES], batches=batches)
    if size is None:
        other = list(_prepared(model, pictures[:_PROOF_IMAGES], info, scale=0.7))
        parity.comparisons += compare(other, batches=batches[-1:])
    if validation is not None and before is not None and data is not None:
        say(f"scoring the file on {validation.name}")
        parity.metric, parity.data = before.primary, Path(data).name
        parity.ap = {"checkpoint": before.value, "file": score(validation).value}
    write_json(out.parent / "parity.json", parity.to_json(), force=True)
    return ExportResult(out, info, parity)


def _check(
    out: Path,
    format: str,
    precision: str,
    size: tuple[int, int] | None,
    batch: int | None,
    *,
    images: str | Path | None,
    data: str | Path | None,
) -> None:
    """Refuse what cannot be done before anything is loaded."""
    if format not in _PRECISIONS:
        raise DataError(f"format '{format}': give one of {', '.join(_PRECISIONS)}")
    ending = SUFFIX_OF_FORMAT[format]
    if out.suffix.lower() != ending:
        raise DataError(f"{out}: files of {format} end in {ending}")
    if precision not in _PRECISIONS[format]:
        raise DataError(f"precision '{precision}': {format} files have {', '.join(_PRECISIONS[format])}")
    if precision == "int8" and images is None and data is None:
        raise DataError("int8 measures the ranges of values on images: give --images DIR or --data DIR")
    if size is not None and min(size) < 32:
        raise DataError(f"--size {size[0]} {size[1]}: sides must be at least 32 pixels")
    if batch is not None and batch < 1:
        raise DataError(f"--batch {batch}: must be at least 1, or dynamic")
    for folder in (images, data):
        if folder is not None and not Path(folder).exists():
            raise DataError(f"{folder}: no such folder")


def _info(
    model: Detector,
    path: Path | None,
    precision: str,
    batch: int | None,
    size: tuple[int, int] | None,
    *,
    with_postprocess: bool,
    licence: str | None,
) -> ArtefactInfo:
    config: DetectorConfig[Architecture] = model.config
    ours = read_info(path) if path is not None and is_ours(path) else None
    recipe = None if ours is None else ours.recipe
    thresholds = getattr(model, "thresholds", None)
    stated = {} if ours is None else ours.extra
    return ArtefactInfo(
        name=model.name,
        task=config.architecture.task,
        config=json.loads(json.dumps(config.flat())),
        categories=model.categories,
        preprocess=Preprocess(
            short_side=config.input.eval_short_side,
            max_side=config.input.eval_max_side,
            resize=config.input.eval_resize,
            mean=tuple(config.input.image_mean or ()),
            std=tuple(config.input.image_std or ()),
            size_divisor=config.input.size_divisor,
        ),
        rules=Rules(
            scores="softmax" if build_classes(config).exclusive else "sigmoid",
            top_k=config.postprocess.top_k,
            nms=config.postprocess.nms,
            nms_decay=config.postprocess.nms_decay,
        ),
        precision=precision,
        batch=batch,
        size=size,
        least_side=LEAST_SIDE,
        with_postprocess=with_postprocess,
        thresholds=None if thresholds is None else thresholds.to_json(),
        licence=licence or _text(stated, "licence"),
        recipe_sha256=None if recipe is None else _sha256(recipe),
        version=__version__,
    )


def _text(values: Mapping[str, object], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) else None


def _sha256(recipe: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


def _write(
    program: ExportedProgram,
    out: Path,
    info: ArtefactInfo,
    format: str,
    *,
    model: Detector,
    images: Sequence[Tensor],
    opset: int,
) -> None:
    if format == "torch-export":
        try:
            with replacing(out) as draft, draft.open("wb") as file:
                torch.export.save(program, file, extra_files={METADATA_KEY: info.to_json()})
        except OSError as error:
            raise RunError(f"{out}: cannot be written ({error.strerror or error})") from error
        return
    converted = onnx_model(program, output_names(model, with_postprocess=info.with_postprocess), opset=opset)
    if format == "onnx":
        write_onnx(with_half_weights(converted) if info.precision == "fp16" else converted, out, info)
        return
    vino: Any = openvino_model(converted)
    if info.precision == "int8":
        vino = quantized(vino, list(_batches(images, info)))
    write_openvino(vino, out, info)


def _batches(images: Sequence[Tensor], info: ArtefactInfo) -> Iterator[Batch]:
    """Prepared images in batches of the size that the file takes."""
    batch = info.batch or 1
    for start in range(0, len(images), batch):
        yield on_canvas([image.numpy() for image in images[start : start + batch]], info)


def _prepared(model: Detector, paths: Sequence[Path], info: ArtefactInfo, *, scale: float = 1.0) -> Iterator[Tensor]:
    """Images (3, H, W) as the model takes them; ``scale``: of the sides that the model was made for."""
    config = model.config
    if scale != 1.0:
        given = config.input.eval_short_side, config.input.eval_max_side
        short, longest = (max(32, round(side * scale)) for side in given)
        config = config.replace(eval_short_side=short, eval_max_side=longest)
    transform = eval_transform(config, canvas=info.size)
    for path in paths:
        image = read_image(path)
        pixels = transform(image, ImageRecord.unlabelled(image)).image
        if info.with_postprocess:  # the file normalises
            mean, std = (torch.tensor(values or ())[:, None, None] for values in (transform.mean, transform.std))
            pixels = (pixels * std + mean) * 255
        yield pixels
