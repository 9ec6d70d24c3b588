"""The recipe's sections and keys: types, limits, defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from detrkit.ranges import Count, CountOrZero, NonNegative, PartBelowOne, Positive, Share, Side

__all__ = ["IMAGE_SIZES", "SECTIONS", "Recipe", "Section", "leaves"]

IMAGE_SIZES = {
    "short_sides": "train_short_sides",
    "max_side": "train_max_side",
    "eval_short_side": "eval_short_side",
    "eval_max_side": "eval_max_side",
}
"""Keys of the ``data`` section and the model options that they replace."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, Field(min_length=1)]
Counts = Annotated[list[Count], BeforeValidator(_as_list), Field(min_length=1)]
Sides = Annotated[list[Side], BeforeValidator(_as_list), Field(min_length=1)]
AboveZero = Annotated[Share, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**53)]


def _auto_or(value: object, check: ValidatorFunctionWrapHandler) -> object:
    return value if value == "auto" else check(value)


def _as_texts(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _itself(value: object) -> object:
    return value


class Section(BaseModel):
    """Base of the recipe's sections: unknown keys are errors, values are checked on assignment too.

    The string below a field says what it means; ``docs/configuration.md`` is made from these.
    """

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_assignment=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # a folder may be called 2024
        protected_namespaces=(),
    )


class ModelSection(Section):
    """Which model, and where its weights start. Further keys are fields of that model's configuration."""

    model_config = ConfigDict(extra="allow")

    name: Text = "dape_lite0"
    """A registered model; ``detrkit models`` lists them."""
    pretrained_backbone: bool = True
    """Start the backbone from ImageNet weights; without effect where ``init`` is given."""
    backbone_weights: Text | None = None
    """Where these weights come from: a file, or ``package``: an installed Python package, never a download. null: an
    installed package if there is one, else a download by timm."""
    init: Text | None = None
    """Start from a detector instead: a checkpoint (ours or official), a run folder, a URL, or the name of published
    weights that were pulled. The rows of its class heads follow the names of the classes; classes that it does not have
    start new, or, where it has as many, take over a row that is left."""
    freeze: Annotated[list[Text], BeforeValidator(_as_texts), Field(min_length=1)] | None = None
    """Parts that keep their weights: ``backbone``, ``encoder``, ``decoder``, ``all_but_heads``, or patterns of names of
    parameters (``encoder.layers.0.*``). null: everything learns that has a rate."""
    lora: Count | None = None
    """Rank of products that are trained beside the projections of attention and feed-forward blocks (LoRA), which keep
    their weights; without ``freeze`` all but the heads is frozen. They are part of the weights in every checkpoint that
    is written for use. null: none."""

    @property
    def overrides(self) -> dict[str, Any]:
        """The further keys, as ``create_model`` takes them (lists as tuples)."""
        extra = self.model_extra or {}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in extra.items()}


class SplitFiles(Section):
    """Where one split lies, for layouts that are not recognised by themselves."""

    annotations: Text | None = None
    """A COCO annotation file, in ``data.root`` or elsewhere; null: where the format has it."""
    images: Text | None = None
    """Folder of the images, in ``data.root`` or elsewhere; null: where the format has it."""


class DataSection(Section):
    """Data set, subset, sampling and augmentation."""

    root: Text = "data"
    """The data folder."""
    format: Literal[
        "auto",
        "coco",
        "coco_panoptic",
        "lvis",
        "roboflow",
        "yolo",
        "voc",
        "cityscapes",
        "masks",
        "ade20k",
        "labelme",
        "via",
        "supervisely",
        "vott",
    ] = "auto"
    """How the folder is laid out; ``auto`` recognises it. Of COCO's instances and panoptic files side by side it takes
    those of the task."""
    train: SplitFiles = Field(default_factory=SplitFiles)
    """Files of the training split, for layouts that are not recognised."""
    val: SplitFiles = Field(default_factory=SplitFiles)
    """The same of the validation split."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a missing or broken image and a bad box do: ``raise`` stops before the first step, ``skip`` leaves them out
    and counts them."""
    sample_rate: AboveZero | None = None
    """Train on this part of the images: a subset drawn with ``sample_seed``, nested in all larger ones."""
    sample_repeat: bool = False
    """Repeat the subset int(1 / ``sample_rate``) times, so that an epoch keeps its length."""
    sample_seed: Seed = 0
    """Which subset."""
    repeat: Count = 1
    """How many times an epoch shows every training image."""
    sampling: Literal["uniform", "repeat_factor"] = "uniform"
    """``repeat_factor`` shows images of rare classes more often (LVIS paper): max(1, sqrt(``sampling_threshold`` / f))
    times per epoch, f being the part of the images that have the class."""
    sampling_threshold: AboveZero = 0.001
    """Classes that a smaller part of the images has are rare."""
    max_detections: Count | None = None
    """Detections of an image that AP counts, best first (COCO: of each class); null: as many as the protocol says, 100
    for COCO and 300 for LVIS. More where images have more objects; no figure to compare with published ones."""
    short_sides: Sides | None = None
    """Shorter sides in training, one drawn per image; null: those of the model (``train_short_sides``). An image is
    resized to it unless its longer side would exceed ``max_side``."""
    max_side: Side | None = None
    """Largest longer side in training; null: that of the model (``train_max_side``)."""
    crop: bool = True
    """Half of the images are resized to one of ``crop_short_sides`` and cut to a random rectangle before the last
    resize."""
    crop_short_sides: Sides = [400, 500, 600]
    """Shorter sides before the cut."""
    crop_size: tuple[Side, Side] = (384, 600)
    """Least and greatest side of the rectangle, in pixels."""
    augmentation: Literal["detr", "strong", "lsj"] = "detr"
    """``detr``: flips, crops, sizes. ``strong`` adds shifts, brightness, contrast, other colours, JPEG artefacts and
    blur. ``lsj`` is large-scale jittering: flips, a random scale, and a cut to a fixed size, instead of the crops and
    sizes above."""
    lsj_size: tuple[Side, Side] = (1024, 1024)
    """``lsj``: height and width to which larger images are cut."""
    lsj_scale: tuple[Positive, Positive] = (0.1, 2.0)
    """``lsj``: least and greatest scale; at 1 the image just fits into ``lsj_size``."""
    colors: Literal["none", "ssd"] = "none"
    """``ssd``: also change brightness, contrast, saturation and hue at random, as SSD does; usual for semantic
    segmentation."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Share = 0.0
    """Probability of a vertical flip."""
    ignore_crowds: bool = False
    """Nothing that is found in a crowd region (``iscrowd`` 1, difficult objects) is wrong in training, as it is in
    evaluation: for incomplete labels. Else such regions are background, as in the published trainings."""
    eval_short_side: Side | None = None
    """Shorter side at evaluation and prediction; null: that of the model."""
    eval_max_side: Side | None = None
    """Largest longer side at evaluation and prediction; null: that of the model."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.crop_size[0] > self.crop_size[1]:
            raise ValueError(f"data.crop_size is [least, most], got {list(self.crop_size)}")
        if self.lsj_scale[0] > self.lsj_scale[1]:
            raise ValueError(f"data.lsj_scale is [least, most], got {list(self.lsj_scale)}")
        return self

    def image_sizes(self) -> dict[str, int | tuple[int, ...]]:
        """The sizes given here, by the model option that each of them replaces."""
        given = {option: getattr(self, key) for key, option in IMAGE_SIZES.items()}
        return {
            option: tuple(size) if isinstance(size, list) else size
            for option, size in given.items()
            if size is not None
        }


class TrainingSection(Section):
    """Length, batch, precision, evaluation, and where the run is kept."""

    epochs: Count | None = None
    """Length in epochs. null without ``iterations``: 50, or as many as give 3,000 optimizer steps."""
    iterations: Count | None = None
    """Length in optimizer steps, instead of ``epochs``."""
    minutes: Positive | None = None
    """Length in minutes of this machine, evaluations and pictures included, instead of a number of steps: it is planned
    from measured steps, again as the run goes, and the schedule that ``epochs`` or ``iterations`` describe is stretched
    over it. A resumed run has what is left of them; with ``seeds`` each run has them."""
    batch_size: Annotated[Count, WrapValidator(_auto_or), PlainSerializer(_itself)] = 4
    """Images per process and forward pass in training. ``auto``: as many of ``optimizer.lr_batch_size`` as memory has
    room for, by the peak of measured steps, the others by ``accumulate``; without ``lr_batch_size`` as many as fit."""
    accumulate: Count = 1
    """Forward passes per optimizer step."""
    workers: Annotated[CountOrZero, Field(le=1024)] = 2
    """Processes that read images, per training process; 0 reads in the training process itself."""
    seed: Seed = 0
    """Of weights, order and augmentation."""
    seeds: Annotated[list[Seed], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """Train once with each of these and print mean and standard deviation."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward pass; weights stay float32."""
    compile: bool = False
    """Compile the network of every training step with ``torch.compile``: minutes of compiling at the start, again for a
    second canvas size and for a last batch of another size, then faster steps, most of all on a GPU. Results are equal
    up to rounding. Needs a C compiler, on a CPU one for C++. Evaluations are not compiled."""
    clip_norm: Positive | None = 0.1
    """Maximum norm of the gradient of all parameters (clipping); null: no clipping."""
    ema: Annotated[PartBelowOne, Field(gt=0)] | None = None
    """Evaluate and keep averaged weights (exponential moving average) with this decay; null: the last weights."""
    federated_classes: Count | None = None
    """Federated loss (LVIS): an unmatched query is a negative for this many classes, those of the batch and sampled
    others, instead of all. Needs ``classification: focal``."""
    evaluate_every: CountOrZero | None = None
    """Epochs between evaluations; 0: never. null: each epoch, but at least 100 optimizer steps apart. The last epoch is
    always evaluated."""
    patience: Count | None = None
    """Stop early when so many evaluations in a row have not been better than the best; null: never."""
    checkpoint_every: Count | None = None
    """Write ``last/`` also after every so many optimizer steps, not only after each epoch."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """``auto``: CUDA, else MPS, else CPU."""
    output: Text | None = None
    """The run folder; null: ``runs/<recipe>-<data>``."""

    @property
    def auto_batch(self) -> bool:
        """Whether the batch size is to be found by measuring."""
        return str(self.batch_size) == "auto"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError("give training.epochs or training.iterations, not both (set the other to null)")
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            raise ValueError("training.seeds names a seed twice")
        return self


class OptimizerSection(Section):
    """AdamW: learning rates per part of the model, and weight decay."""

    lr: Positive = 1e-4
    """Learning rate."""
    lr_backbone: NonNegative = 1e-5
    """Learning rate of the backbone; 0 freezes it."""
    lr_sampling: NonNegative | None = None
    """Learning rate of sampling offsets and reference points in Deformable DETR and its relatives; null: as ``lr``."""
    layer_decay: AboveZero | None = None
    """Layer-wise decay: the last layer of the backbone has ``lr_backbone``, each earlier one the rate of the next layer
    times this; null: no decay."""
    weight_decay: NonNegative = 1e-4
    """Of AdamW."""
    no_decay: Literal["typed"] | list[Text] = Field(default_factory=list)
    """Parameters without weight decay: those whose name in the official repository contains one of these words, or
    ``typed``: all norms, biases, embeddings and scales, chosen by the type of their module."""
    betas: tuple[PartBelowOne, PartBelowOne] = (0.9, 0.999)
    """Of AdamW."""
    lr_batch_size: Count | None = None
    """Images per optimizer step that the rates were chosen for. With another total (processes x ``batch_size`` x
    ``accumulate``) they follow by ``lr_scaling``; null: they are used as they stand."""
    lr_scaling: Literal["sqrt", "linear", "none"] = "sqrt"
    """All rates are multiplied by the square root of the ratio of the totals, by the ratio, or not at all."""


class ScheduleSection(Section):
    """Learning rate over time."""

    kind: Literal["step", "multistep", "cosine", "constant"] = "step"
    """``step`` and ``multistep`` drop the rates, ``cosine`` lowers them to 0 at the end of the run."""
    drop: Annotated[list[Annotated[NonNegative, Field(le=1e9)]], BeforeValidator(_as_list)] | None = None
    """Epochs at which the rates drop (7.5: half-way through the eighth); null: at 80 % of the run."""
    gamma: AboveZero = 0.1
    """Factor of a drop."""
    warmup: CountOrZero = 0
    """Optimizer steps over which the rates rise from near 0."""

    @model_validator(mode="after")
    def _one_drop(self) -> Self:
        if self.kind == "step" and self.drop is not None and len(self.drop) > 1:
            raise ValueError("schedule.kind = 'step' takes one drop; use 'multistep' for several")
        return self


class LoggingSection(Section):
    """What a run tells: pictures, loggers beside the JSONL file, steps between two log lines."""

    plots: bool = True
    """Draw pictures into the run folder: curves, labels, training batches, predictions beside labels, curves of
    precision and recall, confusion matrix."""
    estimate: bool = True
    """Measure three steps before the first epoch, and say how long the run will take and how much memory it needs."""
    tensorboard: bool = False
    """Also write TensorBoard files into the run folder."""
    wandb: bool = False
    """Also log to Weights & Biases."""
    every: Count = 20
    """Optimizer steps between two lines of the log."""


class Recipe(Section):
    """A whole run. Build one with :func:`detrkit.config.load_recipe`."""

    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    logging: LoggingSection = Field(default_factory=LoggingSection)

    _source: str = PrivateAttr(default="recipe")
    _comments: tuple[str, ...] = PrivateAttr(default=())

    @property
    def source(self) -> str:
        """The file the recipe was read from, for messages."""
        return self._source

    @property
    def comments(self) -> tuple[str, ...]:
        """Lines that :meth:`to_yaml` puts on top: why the values are what they are."""
        return self._comments

    def updated(self, **sections: Mapping[str, object]) -> Self:
        """The recipe with other values in its sections, which are not checked; source and comments stay."""
        parts = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update=parts)

    def to_dict(self) -> dict[str, object]:
        """Plain nested dictionaries of numbers, strings and lists, defaults included."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; :func:`detrkit.config.load_recipe` reads it back to an equal one."""
        comments = "".join(f"# {line}\n" for line in self.comments)
        return comments + yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, object]:
        """``{"training.epochs": 50, …}``."""
        return dict(leaves(self.to_dict()))


SECTIONS: dict[str, type[Section]] = {
    name: info.annotation
    for name, info in Recipe.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}


def leaves(tree: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    """(dotted key, value) of everything in nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
