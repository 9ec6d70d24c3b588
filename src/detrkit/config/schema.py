"""The recipe's sections and keys: types, limits, defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

__all__ = ["SECTIONS", "Recipe", "Section", "leaves"]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


Count = Annotated[int, BeforeValidator(_not_bool), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_not_bool), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_not_bool), Field(gt=0)]
NonNegative = Annotated[float, BeforeValidator(_not_bool), Field(ge=0)]
Counts = Annotated[list[Count], BeforeValidator(_as_list), Field(min_length=1)]


class Section(BaseModel):
    """Base of the recipe's sections: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # a folder may be called 2024
        protected_namespaces=(),
    )


class ModelSection(Section):
    """Which model, and where its weights start. Further keys are fields of that model's configuration."""

    model_config = ConfigDict(extra="allow")

    name: str = "dape_lite0"
    pretrained_backbone: bool = True
    backbone_weights: str | None = None
    init: str | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """The further keys, as ``create_model`` takes them (lists as tuples)."""
        extra = self.model_extra or {}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in extra.items()}


class SplitFiles(Section):
    """Where one split lies, for layouts that are not recognised by themselves."""

    annotations: str | None = None
    images: str | None = None


class DataSection(Section):
    """Data set, subset, sampling and augmentation.

    ``sampling: repeat_factor`` shows images of classes that fewer than ``sampling_threshold`` of the images have more
    often, as on LVIS. Crops (``crop``): the image is resized to one of ``crop_short_sides``, then cut to sides between
    the two numbers of ``crop_size``. ``augmentation: strong`` adds shifts and changes of colour.
    """

    root: str = "data"
    format: Literal["auto", "coco", "lvis", "roboflow", "yolo", "voc", "cityscapes"] = "auto"
    train: SplitFiles = Field(default_factory=SplitFiles)
    val: SplitFiles = Field(default_factory=SplitFiles)
    on_error: Literal["raise", "skip"] = "raise"
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    sample_repeat: bool = False
    sample_seed: int = 0
    repeat: Count = 1
    sampling: Literal["uniform", "repeat_factor"] = "uniform"
    sampling_threshold: Annotated[float, BeforeValidator(_not_bool), Field(gt=0, le=1)] = 0.001
    short_sides: Counts | None = None
    max_side: Count | None = None
    crop: bool = True
    crop_short_sides: Counts = [400, 500, 600]
    crop_size: tuple[Count, Count] = (384, 600)
    augmentation: Literal["detr", "strong"] = "detr"
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    vertical_flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    eval_short_side: Count | None = None
    eval_max_side: Count | None = None

    @model_validator(mode="after")
    def _crop_range(self) -> Self:
        if self.crop_size[0] > self.crop_size[1]:
            raise ValueError(f"data.crop_size is [least, most], got {list(self.crop_size)}")
        return self

    def image_sizes(self) -> dict[str, int | tuple[int, ...]]:
        """The sizes given here, by the model option that each of them replaces."""
        sizes: dict[str, int | tuple[int, ...] | None] = {
            "train_short_sides": None if self.short_sides is None else tuple(self.short_sides),
            "train_max_side": self.max_side,
            "eval_short_side": self.eval_short_side,
            "eval_max_side": self.eval_max_side,
        }
        return {name: size for name, size in sizes.items() if size is not None}


class TrainingSection(Section):
    """Length, batch, precision, evaluation and where the run is kept.

    ``epochs: null`` takes 50 epochs, or as many as give 3000 optimizer steps; ``evaluate_every: null`` evaluates after
    each epoch, but with at least 100 optimizer steps between two evaluations; 0 never evaluates.
    ``federated_classes: 50`` counts a query without object as a negative of the classes of the batch and of sampled
    others, 50 together (LVIS); null: of all classes.
    """

    epochs: Count | None = None
    iterations: Count | None = None
    batch_size: Count = 4
    accumulate: Count = 1
    workers: CountOrZero = 2
    seed: CountOrZero = 0
    seeds: Annotated[list[CountOrZero], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_norm: Positive | None = 0.1
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    federated_classes: Count | None = None
    evaluate_every: CountOrZero | None = None
    checkpoint_every: Count | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    output: str | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError("give training.epochs or training.iterations, not both (set the other to null)")
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            raise ValueError("training.seeds names a seed twice")
        return self


class OptimizerSection(Section):
    """AdamW. With ``lr_batch_size`` all rates are multiplied by f(total batch / lr_batch_size), f = ``lr_scaling``.

    ``lr_sampling`` is for what places sampling points and reference points in Deformable DETR; null: as ``lr``.
    ``no_decay``: parameters whose name in the official repository contains one of these have no weight decay; "typed":
    those that are neither matrices nor kernels: norms, biases, embeddings, scales.
    ``layer_decay``: the last layer of the backbone has ``lr_backbone``, each before it this times the next one's.
    """

    lr: Positive = 1e-4
    lr_backbone: NonNegative = 1e-5
    lr_sampling: NonNegative | None = None
    layer_decay: Annotated[float, BeforeValidator(_not_bool), Field(gt=0, le=1)] | None = None
    weight_decay: NonNegative = 1e-4
    no_decay: Literal["typed"] | list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    betas: tuple[float, float] = (0.9, 0.999)
    lr_batch_size: Count | None = None
    lr_scaling: Literal["sqrt", "linear", "none"] = "sqrt"


class ScheduleSection(Section):
    """Learning rate over time. ``drop`` are epochs (7.5 is half-way through the eighth); null = at 80 % of the run."""

    kind: Literal["step", "multistep", "cosine", "constant"] = "step"
    drop: Annotated[list[NonNegative], BeforeValidator(_as_list)] | None = None
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: CountOrZero = 0

    @model_validator(mode="after")
    def _one_drop(self) -> Self:
        if self.kind == "step" and self.drop is not None and len(self.drop) > 1:
            raise ValueError("schedule.kind = 'step' takes one drop; use 'multistep' for several")
        return self


class LoggingSection(Section):
    """Loggers beside the JSONL file, and steps between two log lines."""

    tensorboard: bool = False
    wandb: bool = False
    every: Count = 20


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
