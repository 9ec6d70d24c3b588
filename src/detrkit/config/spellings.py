"""Settings under the names that other tools give them (Ultralytics, MMDetection, DETR and its descendants)."""

from __future__ import annotations

from detrkit.config.schema import SECTIONS

__all__ = ["setting_meant"]

_ELSEWHERE = {
    "amp": "training.precision=fp16",
    "b": "training.batch_size",
    "backbone_lr": "optimizer.lr_backbone",
    "batch": "training.batch_size",
    "bs": "training.batch_size",
    "checkpoint": "model.init",
    "clip_max_norm": "training.clip_norm",
    "coco_path": "data.root",
    "conf": "no setting: predict --threshold, and evaluation needs none",
    "data_path": "data.root",
    "dataset_dir": "data.root",
    "dec_layers": "model.decoder_layers",
    "dim_feedforward": "model.ffn_dim",
    "enc_layers": "model.encoder_layers",
    "eval_interval": "training.evaluate_every",
    "eval_size": "data.eval_short_side",
    "finetune": "model.init",
    "fp16": "training.precision=fp16",
    "gpu": "training.device",
    "gpus": "no setting: accelerate launch --num_processes N -m detrkit train …",
    "gradient_accumulation_steps": "training.accumulate",
    "half": "training.precision=fp16",
    "image_size": "data.short_sides=[N] and data.eval_short_side=N",
    "img": "data.short_sides=[N] and data.eval_short_side=N",
    "img_size": "data.short_sides=[N] and data.eval_short_side=N",
    "imgsz": "data.short_sides=[N] and data.eval_short_side=N",
    "iou": "model.nms",
    "learning_rate": "optimizer.lr",
    "load_from": "model.init",
    "lr0": "optimizer.lr",
    "lr_drop": "schedule.drop",
    "max_epochs": "training.epochs",
    "max_iters": "training.iterations",
    "max_steps": "training.iterations",
    "nc": "no setting: the number of classes is that of the data",
    "nheads": "model.num_heads",
    "num_classes": "no setting: the number of classes is that of the data",
    "num_epochs": "training.epochs",
    "num_workers": "training.workers",
    "output_dir": "training.output",
    "pretrained": "model.init (a checkpoint) or model.pretrained_backbone (ImageNet)",
    "project": "training.output",
    "resolution": "data.short_sides=[N] and data.eval_short_side=N",
    "save_dir": "training.output",
    "save_period": "training.checkpoint_every",
    "warmup_epochs": "schedule.warmup (in optimizer steps)",
    "warmup_iters": "schedule.warmup",
    "wd": "optimizer.weight_decay",
    "weights": "model.init",
    "work_dir": "training.output",
}


def setting_meant(word: str) -> str | None:
    """The setting that a word of another tool stands for, as ``section.key``; None: the word is not known.

    Dashes and case do not matter, and keys that one section has are found without it.
    """
    bare = word.strip("-").replace("-", "_").lower()
    if bare in _ELSEWHERE:
        return _ELSEWHERE[bare]
    homes = [name for name, section in SECTIONS.items() if bare in section.model_fields]
    return f"{homes[0]}.{bare}" if len(homes) == 1 else None
