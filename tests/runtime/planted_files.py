"""An ONNX file with planted objects and real metadata, made in milliseconds: its scores depend on the image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import detrkit
from detrkit.models.registry import model_config
from detrkit.runtime.info import METADATA_KEY, ArtefactInfo, Preprocess, Rules
from detrkit.structures import Categories, Category
from tests.small import small_options

CATEGORIES = Categories([Category(7, "bolt"), Category(3, "nut"), Category(9, "washer")])
QUERIES = 40


def planted_info(name: str = "dino_r50_4scale", **changes: object) -> ArtefactInfo:
    """Metadata of a small model of three classes whose sides are 64 to 96 pixels."""
    config = model_config(
        name, **small_options(name, eval_short_side=64, eval_max_side=96, num_queries=QUERIES, nms=0.5)
    )
    info = ArtefactInfo(
        name=name,
        task="det",
        config=json.loads(json.dumps(config.flat())),
        categories=CATEGORIES,
        preprocess=Preprocess(
            short_side=64,
            max_side=96,
            resize=config.input.eval_resize,
            mean=tuple(config.input.image_mean or ()),
            std=tuple(config.input.image_std or ()),
            size_divisor=config.input.size_divisor,
        ),
        rules=Rules(scores="sigmoid", top_k=config.postprocess.top_k, nms=0.5),
        version=detrkit.__version__,
    )
    return replace(info, **changes)


def planted_onnx(path: Path, info: ArtefactInfo, *, metadata: str | None = None) -> Path:
    """Write a file whose logits are constants plus the mean of the prepared image."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (1, QUERIES, 3)).astype(np.float32)
    boxes = generator.uniform(0.2, 0.6, (1, QUERIES, 4)).astype(np.float32)
    batch = info.batch or "batch"
    sides = info.size or ("height", "width")
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "last"], ["brightness"]),
            helper.make_node("Add", ["planted_logits", "brightness"], ["logits"]),
            helper.make_node("Mul", ["brightness", "nothing"], ["still"]),
            helper.make_node("Add", ["planted_boxes", "still"], ["boxes"]),
        ],
        "planted",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *sides]),
            helper.make_tensor_value_info("padding_mask", TensorProto.BOOL, [batch, *sides]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, QUERIES, 3]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, QUERIES, 4]),
        ],
        initializer=[
            numpy_helper.from_array(logits, "planted_logits"),
            numpy_helper.from_array(boxes, "planted_boxes"),
            numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
            numpy_helper.from_array(np.array([1, 2]), "last"),
            numpy_helper.from_array(np.array(0, np.float32), "nothing"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    text = info.to_json() if metadata is None else metadata
    model.metadata_props.add(key=METADATA_KEY, value=text)
    onnx.save(model, path)
    return path
