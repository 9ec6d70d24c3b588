"""Recipes: one typed, validated YAML file decides a run. Reading, ``extends``, ``key=value`` overrides, errors.

Unknown keys are refused with the nearest valid one. Only ``model`` takes further keys: every field of the chosen
model's configuration (``create_model`` checks those).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from detrkit.errors import RecipeError, did_you_mean

__all__ = ["Recipe", "list_recipes", "load_recipe"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _not_bool(value: Any) -> Any:
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

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=())


class ModelSection(Section):
    """Which model, and where its weights start. Further keys are fields of that model's configuration."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, protected_namespaces=())

    name: str = "dela_detr_lite0"
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
    """Data set, subset and augmentation."""

    root: str = "data"
    format: Literal["auto", "coco", "roboflow", "yolo", "voc", "cityscapes"] = "auto"
    train: SplitFiles = Field(default_factory=SplitFiles)
    val: SplitFiles = Field(default_factory=SplitFiles)
    on_error: Literal["raise", "skip"] = "raise"
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    sample_repeat: bool = False
    sample_seed: int = 0
    short_sides: Counts | None = None
    max_side: Count | None = None
    crop: bool = True
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    eval_short_side: Count | None = None
    eval_max_side: Count | None = None


class TrainingSection(Section):
    """Length, batch, precision, evaluation and where the run is kept.

    ``epochs: null`` takes 50 epochs, or as many as give 3000 optimizer steps; ``evaluate_every: null`` evaluates after
    each epoch, but with at least 100 optimizer steps between two evaluations; 0 never evaluates.
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
    """AdamW. With ``lr_batch_size`` both rates are multiplied by f(total batch / lr_batch_size), f = ``lr_scaling``."""

    lr: Positive = 1e-4
    lr_backbone: NonNegative = 1e-5
    weight_decay: NonNegative = 1e-4
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
    """A whole run. Build one with :func:`load_recipe`."""

    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    logging: LoggingSection = Field(default_factory=LoggingSection)

    _source: str = PrivateAttr(default="recipe")

    @property
    def source(self) -> str:
        """The file the recipe was read from, for messages."""
        return self._source

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries of numbers, strings and lists, defaults included."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; :func:`load_recipe` reads it back to an equal one."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """``{"training.epochs": 50, …}``."""
        return dict(_leaves(self.to_dict()))


SECTIONS: dict[str, type[Section]] = {
    name: info.annotation
    for name, info in Recipe.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}


# ---------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: ``1e-4`` is a number (YAML 1.1 wants ``1.0e-4``), a key twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key_node.value}' twice", key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections ({', '.join(SECTIONS)})")
    return content


def _parse_value(text: str) -> Any:
    """The value of an override: YAML, and ``0,1,2`` a list of numbers."""
    try:
        value = yaml.load(text, Loader=_Loader)
        if isinstance(value, str) and "," in value:
            parts = [yaml.load(part, Loader=_Loader) for part in value.split(",") if part.strip()]
            if parts and all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts):
                return parts
    except yaml.YAMLError:
        return text
    return value


# --------------------------------------------------------------------------------------------- names and extends


def _recipe_roots() -> list[Path]:
    here = Path(__file__).resolve().parent
    roots = [Path("recipes"), here / "recipes", here.parents[1] / "recipes"]
    return [root for index, root in enumerate(roots) if root.is_dir() and root not in roots[:index]]


def list_recipes() -> list[str]:
    """Names of the recipes in ./recipes and of those that come with detrkit, e.g. ``detr/coco/detr_r50_coco_500ep``."""
    return sorted(
        {
            file.relative_to(root).with_suffix("").as_posix()
            for root in _recipe_roots()
            for file in root.rglob("*.yaml")
            if not any(part.startswith("_") for part in file.relative_to(root).parts)
        }
    )


def find_recipe(name: str | Path) -> Path:
    """The file that ``name`` means: a path, a run folder, or a recipe's name with or without folders and ``.yaml``.

    Raises:
        RecipeError: nothing of that name, or several.
    """
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    for candidate in (path, path.with_name(path.name + ".yaml")):
        if candidate.is_file():
            return candidate
    wanted = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    parts = wanted.parts[1:] if wanted.parts[:1] == ("recipes",) else wanted.parts
    for root in _recipe_roots():
        found = root.joinpath(*parts[:-1], parts[-1] + ".yaml") if parts else root
        if found.is_file():
            return found
        same = sorted(file for file in root.rglob(f"{wanted.name}.yaml")) if len(parts) == 1 else []
        if len(same) > 1:
            raise RecipeError(f"recipe '{name}' is ambiguous: {', '.join(str(file) for file in same)}")
        if same:
            return same[0]
    known = list_recipes()
    stems = {recipe.rsplit("/", 1)[-1]: recipe for recipe in known}
    hint = did_you_mean(str(wanted), known) if "/" in str(wanted) else did_you_mean(str(wanted), stems)
    raise RecipeError(f"no recipe '{name}': no such file, and no recipe of that name.{hint}")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _resolve(content: Mapping[str, Any], where: str, folder: Path, chain: tuple[Path, ...]) -> _Layered:
    """``content`` laid over everything it extends."""
    own = dict(content)
    parents = own.pop("extends", None) or []
    if isinstance(parents, str | Path):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(parent, str | Path) for parent in parents):
        raise RecipeError(f"{where}: extends = {parents!r}: should be a path or a list of paths")
    layered = _Layered({}, {})
    for parent in parents:
        path = folder / parent
        if not path.is_file() and path.with_name(path.name + ".yaml").is_file():
            path = path.with_name(path.name + ".yaml")
        if not path.is_file():
            raise RecipeError(f"{where}: extends = {str(parent)!r}: no such file ({path})")
        if path.resolve() in chain:
            circle = " -> ".join(file.name for file in (*chain, path.resolve()))
            raise RecipeError(f"{where}: extends goes in a circle: {circle}")
        layered.add(_resolve(_read_yaml(path), str(path), path.parent, (*chain, path.resolve())))
    _check_keys(own, where)
    layered.add(_Layered(own, {key: where for key, _ in _leaves(own)}))
    return layered


class _Layered:
    """Values, and for each dotted key the file or override that set it."""

    def __init__(self, values: dict[str, Any], origin: dict[str, str]) -> None:
        self.values, self.origin = values, origin

    def add(self, over: _Layered) -> None:
        length = over.values.get("training") or {}
        for key, other in (("iterations", "epochs"), ("epochs", "iterations")):
            # whoever asks for 500 iterations does not want the 50 epochs of the recipe underneath
            if length.get(key) is not None and other not in length and "training" in self.values:
                self.values = _merge(self.values, {"training": {other: None}})
        self.values = _merge(self.values, over.values)
        self.origin |= over.origin


# ------------------------------------------------------------------------------------------------ keys and errors


def _subsection(section: type[Section], key: str) -> type[Section] | None:
    annotation = section.model_fields[key].annotation if key in section.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _check_keys(tree: Mapping[str, Any], where: str, section: type[Section] = Recipe, prefix: str = "") -> None:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise RecipeError(f"{where}: key {prefix}{key!r} is not text")
        if key not in section.model_fields:
            if section.model_config.get("extra") == "allow":
                continue
            raise RecipeError(f"{where}: unknown key '{prefix}{key}'.{_nearest(key, section)}")
        inner = _subsection(section, key)
        if inner is not None:
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}: {prefix}{key} = {value!r}: should be a mapping of keys")
            _check_keys(value, where, inner, f"{prefix}{key}.")


def _nearest(key: str, section: type[Section]) -> str:
    if section is not Recipe:
        return did_you_mean(key, section.model_fields)
    homes = [name for name, inner in SECTIONS.items() if key in inner.model_fields]
    if homes:
        return f" It belongs to a section: {' or '.join(f'{home}.{key}' for home in homes)}."
    return did_you_mean(key, SECTIONS)


def _override(key: str, value: Any) -> dict[str, Any]:
    """``{"training": {"epochs": 3}}`` for ``training.epochs`` or the bare ``epochs``."""
    parts = key.strip().split(".")
    if len(parts) == 1 and parts[0] not in SECTIONS:
        homes = [name for name, section in SECTIONS.items() if parts[0] in section.model_fields]
        if len(homes) > 1:
            raise RecipeError(f"override '{key}': ambiguous, write {' or '.join(f'{home}.{key}' for home in homes)}")
        if not homes:
            bare = [field for section in SECTIONS.values() for field in section.model_fields]
            hint = did_you_mean(key, bare) if did_you_mean(key, bare).startswith(" Did") else ""
            raise RecipeError(
                f"override '{key}': unknown key.{hint} Keys are written section.key=value (sections: "
                f"{', '.join(SECTIONS)}), a field of the model as model.{key}=value."
            )
        parts = [homes[0], *parts]
    for part in reversed(parts):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _override_layers(overrides: Sequence[str] | Mapping[str, Any]) -> Iterable[_Layered]:
    if isinstance(overrides, Mapping):
        items = [(str(key), value) for key, value in overrides.items()]
    else:
        items = []
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                raise RecipeError(f"override '{text}': should be section.key=value")
            items.append((key, _parse_value(value)))
    for key, value in items:
        tree = _override(key, value)
        where = f"override '{key}'"
        _check_keys(tree, where)
        yield _Layered(tree, {leaf: where for leaf, _ in _leaves(tree)})


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """The recipe in a file, of a name, in a run folder or in a mapping, with overrides laid over it.

    ``overrides``: ``["training.epochs=3", "seeds=0,1,2"]`` or ``{"training.epochs": 3}``; the section may be left out
    where only one has that key.

    Raises:
        RecipeError: unknown recipe, key or wrong value (names file, key, value), or ``extends`` in a circle.
    """
    if isinstance(source, Recipe):
        layered = _Layered(source.to_dict(), {})
        where = source.source
    elif isinstance(source, Mapping):
        where = "recipe"
        layered = _resolve(source, where, Path(), ())
    else:
        path = find_recipe(source)
        where = str(path)
        layered = _resolve(_read_yaml(path), where, path.parent, (path.resolve(),))
    for layer in _override_layers(overrides):
        layered.add(layer)
    try:
        recipe = Recipe.model_validate(layered.values)
    except ValidationError as error:
        first = error.errors()[0]
        names = [str(part) for part in first["loc"]]
        key = ".".join(names)
        origin = next((layered.origin[".".join(names[:n])] for n in range(len(names), 0, -1)
                       if ".".join(names[:n]) in layered.origin), where)
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if first["type"] == "value_error" and len(names) == 1 else f"{key} = {first['input']!r}: "
        raise RecipeError(f"{origin}: {shown}{message}") from None
    recipe._source = where
    return recipe
