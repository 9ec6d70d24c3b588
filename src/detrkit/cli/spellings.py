"""Options of other tools (Ultralytics, MMDetection, DETR): which option or setting of detrkit is meant."""

from __future__ import annotations

__all__ = ["option_meant"]

_OUT = dict.fromkeys(("output", "output-dir", "project", "name", "save-dir", "work-dir", "out-dir", "o"), "--out DIR")
_WEIGHTS = ("weights", "ckpt", "checkpoint-path", "pretrained", "load-from", "resume", "pretrain-model-path")
_RUN = dict.fromkeys(("out", "output-dir", "project", "name", "save-dir", "work-dir", "run-dir"), "--output DIR")
_DATA = dict.fromkeys(
    ("coco-path", "data-path", "dataset", "dataset-dir", "data-dir", "root", "dataset-file"),
    "--data DIR, whose format is recognised",
)
_RECIPE = dict.fromkeys(
    ("config", "cfg", "config-file", "recipe"), "the first word after the command, without an option"
)
_SIZE = dict.fromkeys(("imgsz", "img", "img-size", "image-size", "size"), "data.eval_short_side=N data.eval_max_side=M")
_OVERRIDES = dict.fromkeys(("cfg-options", "opts", "options", "set"), "key=value words without an option")

# command -> option of another tool -> what it is called here
_OPTIONS: dict[str, dict[str, str]] = {
    "predict": {
        **_OUT,
        **dict.fromkeys(_WEIGHTS, "--model CKPT"),
        **dict.fromkeys(("source", "input", "images-dir", "img-path", "data", "i"), "a word without an option: DIR"),
        **dict.fromkeys(("conf", "conf-thres", "score-thr", "confidence", "score-threshold"), "--threshold SCORE"),
        **dict.fromkeys(("iou", "iou-thres", "nms-thres"), "--nms IOU"),
        **dict.fromkeys(("batch", "bs"), "--batch-size N"),
        **dict.fromkeys(
            ("imgsz", "img", "img-size", "image-size", "size"), "not needed: the checkpoint has its image size"
        ),
        **dict.fromkeys(("save-json", "save"), "not needed: predictions.json and pictures are written"),
        **dict.fromkeys(("save-txt", "save-conf"), "--format yolo"),
        **dict.fromkeys(("save-crop", "save-crops", "crop", "crops"), "--format crops"),
        **dict.fromkeys(("max-det", "topk", "top-k"), "--max-detections N"),
        **dict.fromkeys(("augment", "flip"), "--tta"),
        **dict.fromkeys(("class", "filter-classes"), "--classes A,B"),
        **dict.fromkeys(("show-labels", "hide-labels", "line-width"), "--labels auto|all|none"),
        **dict.fromkeys(("nosave", "no-save"), "--no-images"),
    },
    "eval": {
        **_DATA,
        **_SIZE,
        **_RECIPE,
        **_OVERRIDES,
        **dict.fromkeys(_WEIGHTS, "--checkpoint CKPT"),
        **dict.fromkeys(("batch", "bs"), "--batch-size N"),
        **dict.fromkeys(("conf", "conf-thres"), "not needed: AP counts all scores (predict has --threshold)"),
        **dict.fromkeys(("half", "fp16", "amp"), "--precision fp16"),
        **dict.fromkeys(("num-workers",), "--workers N"),
        "iou": "model.nms=IOU",
        "task": "model.task=TASK",
    },
    "train": {
        **_DATA,
        **_RUN,
        **_RECIPE,
        **_OVERRIDES,
        "eval": "another command: detrkit eval",
        "masks": "model.task=inst with a model that has masks",
    },
}


def option_meant(command: str, option: str) -> str | None:
    """What an option that a command does not have is called here; None: not known."""
    bare = option.lstrip("-").replace("_", "-").lower()
    known = _OPTIONS.get(command, {}).get(bare)
    if known is None and command in ("train", "eval"):
        from detrkit.config.spellings import setting_meant

        known = setting_meant(bare)
        if known is not None and known.replace(".", "").replace("_", "").isalnum():
            known += "=VALUE"  # settings are words without dashes
    return known
