"""Choose a recipe from the statistics of a data set; the rules are in ``training/auto/rules.py``."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from detrkit.config import Recipe, load_recipe, override_values
from detrkit.data import DetectionDataset
from detrkit.data.formats import find_sources
from detrkit.data.statistics import Statistics, statistics
from detrkit.errors import DataError, first_few
from detrkit.models import Architecture, DetectorConfig, entry, model_config
from detrkit.models.registry import Entry
from detrkit.terminal import say
from detrkit.training.auto import rules
from detrkit.training.auto.draft import Draft
from detrkit.training.auto.model_choice import choose_model
from detrkit.training.task import STEPS_BETWEEN_EVALUATIONS, load_split, require_boxes

__all__ = ["auto_recipe"]


def auto_recipe(
    data: str | Path, overrides: Sequence[str] | Mapping[str, object] = (), *, quiet: bool = False, **more: object
) -> Recipe:
    """Choose a recipe for a data folder: ``detrkit.train(detrkit.auto_recipe("my_data"))``.

    Model, queries, image size, augmentation, length, batch size, learning rates, EMA and evaluation follow the data and
    the device. Every choice is printed to stderr with its reason, one line per choice; the same lines are in
    ``recipe.comments`` and at the top of the run's ``recipe.yaml``. Nothing is downloaded, here or during the run,
    except ImageNet weights of a model that you name and whose backbone is in no package, and a ``model.init`` URL.

    Args:
        data: the data folder, in any of the known formats.
        overrides: ``["training.epochs=3"]`` or ``{"training.epochs": 3}``; they win, and other choices follow them.
        quiet: print nothing.
        more: overrides as keywords, as for :func:`detrkit.train` (``epochs=3``, ``model={"num_queries": 50}``).

    Raises:
        DataError: images or annotations cannot be used, or no training image has any box.
        RecipeError: an unknown key, model or option, or a wrong value.
        CheckpointError: ``model.init`` cannot be read.
    """
    draft = Draft({"data.root": str(data), **override_values(more), **override_values(overrides)})
    recipe = load_recipe({}, {key: value for key, value in draft.given.items() if key != "data.repeat"})
    train = load_split(recipe, "train")
    require_boxes(train, recipe.data.root)
    val = _validation(recipe)
    numbers = statistics(train)
    gpu = torch.cuda.is_available() and recipe.training.device.startswith(("auto", "cuda"))

    draft.note(
        f"settings for {recipe.data.root}: training images {numbers.images:,} ({numbers.empty_images:,} without "
        f"objects), classes {len(numbers.classes)}, boxes {numbers.boxes:,}"
    )
    name, config = choose_model(draft, gpu=gpu)
    model = entry(name)
    queries = _choose_queries(draft, config, objects=max(_max_objects(train), 0 if val is None else _max_objects(val)))
    short_side = _choose_image_size(draft, config, numbers, gpu=gpu, laptop=model.laptop)
    _choose_augmentation(draft, numbers, short_side)
    _note_image_sizes(draft, name)
    rates = rules.LAPTOP_RATES if model.laptop else rules.PUBLISHED_RATES
    total = _choose_batch(draft, rates, queries=queries, memory=_gpu_memory() if gpu and not model.laptop else math.inf)
    epoch = _choose_epoch(draft, images=numbers.images, total=total)
    steps = _choose_length(draft, images=numbers.images, total=total, epoch=epoch, gpu=gpu)
    _choose_optimizer(draft, model, rates, steps=steps)
    _choose_evaluation(draft, val, steps=steps, epoch=epoch)
    cores = os.cpu_count() or 1
    draft.set_default("training.workers", min(4, max(1, cores - 1)) if gpu else 1)
    _add_notes(draft, train, numbers, queries=queries)
    if not quiet:
        say("\n".join(draft.lines))
    return draft.recipe()


def _max_objects(dataset: DetectionDataset) -> int:
    """Number of objects in the image with most objects."""
    return max(len(record.labels) for record in dataset.records)


def _validation(recipe: Recipe) -> DetectionDataset | None:
    """The validation images; None where there are none, or evaluation is off."""
    data = recipe.data
    if recipe.training.evaluate_every == 0:
        return None
    if data.val.annotations is None:
        try:
            splits = find_sources(Path(data.root), format=data.format)
        except DataError:
            if data.train.annotations is None:
                raise
            return None  # a file of training images in a folder without a known layout
        if "val" not in splits:
            return None
    return load_split(recipe, "val")


def _gpu_memory() -> float:
    """Memory of the GPU in GiB."""
    return float(torch.cuda.get_device_properties(0).total_memory) / 2**30


def _choose_queries(draft: Draft, config: DetectorConfig[Architecture], *, objects: int) -> int:
    """Choose label repeat, NMS, queries, and the number of detections; returns the number of queries."""
    given = draft.given.get("model.num_queries")
    limit = rules.MAX_REPEATED_QUERIES if given is None else int(given)
    crowded = f"up to {objects:,} objects per image"
    repeat = config.objective.repeat_label
    if repeat is not None and not config.objective.two_stage_match:
        fits = repeat * objects <= limit
        reason = "several queries learn each object" if fits else f"{crowded}, {repeat} times, exceed {limit} queries"
        repeat = draft.choose("label repeat", "model.repeat_label", repeat if fits else None, reason)
        if repeat is None and config.postprocess.nms is not None:
            draft.choose("NMS", "model.nms", None, "one query learns each object, and crowded ones overlap")
    copies = f", {repeat} times with label repeat" if repeat else ""
    wanted = rules.queries(objects=objects, repeat=repeat, minimum=config.architecture.num_queries)
    count = int(draft.choose("queries", "model.num_queries", wanted, crowded + copies))
    if objects * rules.HEADROOM > config.postprocess.top_k:
        draft.choose("detections kept per image", "model.top_k", max(config.postprocess.top_k, count), crowded)
    return count


def _choose_image_size(
    draft: Draft, config: DetectorConfig[Architecture], numbers: Statistics, *, gpu: bool, laptop: bool
) -> int:
    """Choose image sizes for training and evaluation; returns the shorter side for evaluation, of a run of few minutes
    the one that it would have with more of them: crops show detail that only longer runs learn from."""
    classes = [row for row in numbers.classes if row.boxes >= rules.RARE * numbers.boxes]
    small, name = min((row.small or math.inf, row.name) for row in classes)
    shorter, aspect = _usual_sides(numbers)
    minutes = draft.given.get("training.minutes")
    size = rules.choose_image_size(
        config.input,
        small=small,
        shorter=shorter,
        aspect=aspect,
        max_side=rules.MAX_SIDE[gpu],
        in_time=rules.side_for_minutes(float(minutes)) if minutes is not None and laptop and not gpu else None,
    )
    reason = f"a quarter of '{name}' is below {small * size.short_side:.0f} px there"
    if size.limited_by:
        reason += f", and more would go beyond {size.limited_by}"
        reason += "; cutting the images into tiles would help" if shorter > size.short_side else ""
    side = int(draft.choose("shorter side of images in evaluation", "data.eval_short_side", size.short_side, reason))
    if side == size.short_side:
        draft.set_default("data.eval_max_side", size.max_side)
        draft.set_default("data.short_sides", list(size.train_short_sides))
        draft.set_default("data.max_side", size.train_max_side)
        return size.wanted
    return side


def _note_image_sizes(draft: Draft, model: str) -> None:
    """Note the sizes that the run uses, whoever chose them."""
    recipe = draft.recipe()
    sizes = model_config(model, **draft.model_options() | recipe.data.image_sizes()).input
    training = f"shorter side {first_few(sizes.train_short_sides, 12)}, longer at most {sizes.train_max_side:,}"
    if recipe.data.augmentation == "lsj":
        height, width = recipe.data.lsj_size
        training = f"at a random scale, cut to {width}x{height} (lsj)"
    draft.note(
        f"  pixels of images: in training {training}; in evaluation shorter side {sizes.eval_short_side:,}, longer at "
        f"most {sizes.eval_max_side:,}"
    )


def _usual_sides(numbers: Statistics) -> tuple[float, float]:
    """(median shorter side in pixels, 75th percentile of the aspect ratio)."""
    sizes = np.asarray([row[:2] for row in numbers.image_sizes])
    sizes = sizes.repeat([row[2] for row in numbers.image_sizes], axis=0)
    low, high = sizes.min(axis=1), sizes.max(axis=1)
    return float(np.median(low)), float(np.percentile(high / low, 75))


def _choose_augmentation(draft: Draft, numbers: Statistics, short_side: int) -> None:
    """Choose crops and flips."""
    sizes = numbers.box_sizes_relative or (1.0,) * 7
    shorter, _ = _usual_sides(numbers)
    crop_reason = rules.crop_reason(shorter=shorter, short_side=short_side, spread=sizes[5] / sizes[1])
    reason = crop_reason or "objects have one scale, and images are hardly larger than needed"
    draft.choose("crops", "data.crop", crop_reason is not None, reason)
    sided = [row.name for row in numbers.classes if {"left", "right"} & set(re.split(r"[\W_]+", row.name.lower()))]
    reason = f"'{sided[0]}' has a side" if sided else "left and right may be exchanged"
    draft.choose("horizontal flip", "data.flip", 0.0 if sided else 0.5, reason)
    reason = "text and streets have an up; where images have none (microscopes, maps): data.vertical_flip=0.5"
    draft.choose("vertical flip", "data.vertical_flip", 0.0, reason)


def _choose_batch(draft: Draft, rates: rules.Rates, *, queries: int, memory: float) -> int:
    """Choose batch size and accumulation; returns the images per optimizer step over all processes."""
    if str(draft.given.get("training.batch_size")) == "auto":
        whole = int(draft.set_default("optimizer.lr_batch_size", rates.batch) or rates.batch)
        draft.note(f"  batch auto: as many of {whole} images as memory has room for, the others are accumulated")
        draft.choose("frozen batch norm", "model.frozen_batch_norm", True, "its statistics need larger batches")
        return whole
    fitting = next(batch for needed, batch in rules.GIBIBYTES_FOR_BATCH if memory >= needed)
    if queries > rules.CROWDED:
        fitting = min(fitting, rules.BATCH // 2)
    reason = "as in the measured recipe" if fitting == rules.BATCH else "less memory"
    batch = int(draft.choose("batch", "training.batch_size", fitting, reason))
    parts = max(1, rules.BATCH // batch)
    if parts > 1 or "training.accumulate" in draft.given:
        parts = draft.choose("accumulated batches", "training.accumulate", parts, f"{rules.BATCH} images per step")
    draft.choose("frozen batch norm", "model.frozen_batch_norm", True, "its statistics need larger batches")
    return batch * parts * int(os.environ.get("WORLD_SIZE", "1"))


def _choose_epoch(draft: Draft, *, images: int, total: int) -> int:
    """Optimizer steps per epoch; few images are repeated, because every epoch ends with a checkpoint."""
    needed = math.ceil(rules.MIN_EPOCH_STEPS * total / images)
    repeat = int(draft.given.get("data.repeat", 1))
    if needed > 1:
        reason = f"so that an epoch has {rules.MIN_EPOCH_STEPS} steps"
        repeat = int(draft.choose("repeats of each image per epoch", "data.repeat", needed, reason))
    return math.ceil(images * repeat / total)


def _choose_length(draft: Draft, *, images: int, total: int, epoch: int, gpu: bool) -> int:
    """Choose the length of the run; returns the number of optimizer steps."""
    epochs = draft.given.get("training.epochs")
    if epochs is not None:
        draft.note(f"  epochs {epochs:,}: yours")
        return int(epochs) * epoch
    wanted = rules.iterations(images=images, batch=total, gpu=gpu)
    minutes = draft.given.get("training.minutes")
    if minutes is not None and "training.iterations" not in draft.given:
        draft.note(f"  optimizer steps: as many as {float(minutes):g} minutes have room for")
        return int(draft.set_default("training.iterations", wanted))
    published = math.ceil(rules.EPOCHS * images / total)
    reason = f"{rules.EPOCHS} epochs"
    if wanted > published:
        reason += f" are only {published:,}, and a detection transformer learns little in fewer than {wanted:,}"
    elif wanted < published:
        reason += f" would be {published:,}, too long {'even for' if gpu else 'without'} a GPU"
    return int(draft.choose("optimizer steps", "training.iterations", wanted, reason))


def _choose_optimizer(draft: Draft, model: Entry, rates: rules.Rates, *, steps: int) -> None:
    """Choose learning rates, schedule and EMA."""
    lr = draft.choose("learning rate", "optimizer.lr", rates.lr, f"{rates.source}, {rates.batch} images per step")
    draft.set_default("optimizer.lr_backbone", rates.backbone)
    if model.slow_sampling:
        draft.set_default("optimizer.lr_sampling", lr / rules.SLOWER_SAMPLING)
    if not {"optimizer.lr", "optimizer.lr_backbone"} & draft.given.keys():
        draft.set_default("optimizer.lr_batch_size", rates.batch)
    draft.choose("schedule", "schedule.kind", "cosine", "needs no epoch at which the rate drops")
    draft.set_default("schedule.warmup", min(100, steps // 10))
    draft.choose("decay of averaged weights", "training.ema", rules.ema_decay(steps), "about the last fifth of the run")


def _choose_evaluation(draft: Draft, val: DetectionDataset | None, *, steps: int, epoch: int) -> None:
    """Choose the number of epochs between evaluations."""
    if val is None:
        if "training.evaluate_every" not in draft.given:
            draft.set_default("training.evaluate_every", 0)
            root = str(draft.given["data.root"])
            draft.note(
                "  no evaluation: there are no validation images, so AP is not measured and the last weights are "
                f"kept; to set some apart: detrkit data split {root} --val 0.2 --out {root.rstrip('/')}_split"
            )
        return
    interval = max(STEPS_BETWEEN_EVALUATIONS, steps // 20)
    reason = f"{len(val):,} validation images, about every {interval:,} steps"
    draft.choose("epochs between evaluations", "training.evaluate_every", math.ceil(interval / epoch), reason)
    if not any(len(record.labels) for record in val.records):
        draft.note("  note: no validation image has an object: AP is undefined, and the last weights count as the best")


def _add_notes(draft: Draft, train: DetectionDataset, numbers: Statistics, *, queries: int) -> None:
    """Note problems of the data that settings cannot solve."""
    objects = _max_objects(train)
    missing = [row.name for row in numbers.classes if not row.boxes]
    if missing:
        draft.note(f"  note: no training image has a box of {first_few(missing, 10)}: the model will not find any")
    listed = Counter({record.image_id: record.file_name for record in train.records}.values())
    twice = [name for name, times in listed.items() if times > 1]
    if twice:
        draft.note(f"  note: files listed twice, {twice[0]} first: objects of one entry are background in the other")
    if objects > queries:
        draft.note(f"  note: {queries:,} queries find no more objects than that; an image has {objects:,}")
    if objects > 100:
        draft.note(
            "  note: COCO's AP counts 100 detections per image, so it is low where an image has more objects; "
            "data.max_detections=500 counts more"
        )
