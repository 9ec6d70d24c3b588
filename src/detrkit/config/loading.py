"""Loading a validated recipe from a file, a name or a mapping, with ``key=value`` overrides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import yaml
from pydantic import ValidationError

from detrkit.config.recipe_files import find_recipe, parse_value, read_yaml
from detrkit.config.schema import SECTIONS, Recipe, Section, leaves
from detrkit.config.spellings import setting_meant
from detrkit.errors import RecipeError, did_you_mean

__all__ = ["load_recipe", "override_values", "written_values"]


_NAMES = {"model": "model.name", "data": "data.root"}  # what a text as the whole section stands for elsewhere


def _merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


class _Layered:
    """Nested values, and for every dotted key the file or override that set it."""

    def __init__(self, values: dict[str, object], origin: dict[str, str]) -> None:
        self.values, self.origin = values, origin

    def add(self, over: _Layered) -> None:
        training = over.values.get("training")
        length = training if isinstance(training, Mapping) else {}
        for key, other in (("iterations", "epochs"), ("epochs", "iterations")):
            # 500 iterations in an upper layer replace 50 epochs in a lower one
            if length.get(key) is not None and other not in length and "training" in self.values:
                self.values = _merge(self.values, {"training": {other: None}})
        self.values = _merge(self.values, over.values)
        self.origin |= over.origin


_MAX_CHAIN = 50  # recipes that extend each other in a row


def _resolve(
    values: Mapping[str, object], where: str, folder: Path, chain: tuple[Path, ...], known: dict[Path, _Layered]
) -> _Layered:
    """The values merged over those of all recipes that they extend.

    Args:
        values: a recipe as written.
        where: its name in messages.
        folder: the folder to which paths in ``extends`` are relative.
        chain: the files that led here through ``extends``, to detect circles.
        known: the files that are resolved already; several may extend the same.
    """
    own = dict(values)
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
        if len(chain) > _MAX_CHAIN:
            raise RecipeError(f"{where}: more than {_MAX_CHAIN} recipes extend each other in a row")
        file = path.resolve()
        if file not in known:
            known[file] = _resolve(read_yaml(path), str(path), path.parent, (*chain, file), known)
        layered.add(known[file])
    _check_keys(own, where)
    layered.add(_Layered(own, {key: where for key, _ in leaves(own)}))
    return layered


def _subsection(section: type[Section], key: str) -> type[Section] | None:
    annotation = section.model_fields[key].annotation if key in section.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _check_keys(tree: Mapping[str, object], where: str, section: type[Section] = Recipe, prefix: str = "") -> None:
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
                hint = f"; meant is perhaps {_NAMES[key]}={value}" if key in _NAMES and isinstance(value, str) else ""
                raise RecipeError(f"{where}: {prefix}{key} = {value!r}: should be a mapping of keys{hint}")
            _check_keys(value, where, inner, f"{prefix}{key}.")


def _nearest(key: str, section: type[Section]) -> str:
    homes = [name for name, inner in SECTIONS.items() if key in inner.model_fields]
    if section is not Recipe and not homes:
        return did_you_mean(key, section.model_fields)
    if homes:
        return f" It belongs to a section: {' or '.join(f'{home}.{key}' for home in homes)}."
    return did_you_mean(key, SECTIONS)


def _override(key: str, value: object) -> dict[str, object]:
    """``{"training": {"epochs": 3}}`` for ``training.epochs`` or the bare ``epochs``."""
    parts = key.strip().split(".")
    if len(parts) == 1 and parts[0] not in SECTIONS:
        homes = [name for name, section in SECTIONS.items() if parts[0] in section.model_fields]
        if len(homes) > 1:
            raise RecipeError(f"override '{key}': ambiguous, write {' or '.join(f'{home}.{key}' for home in homes)}")
        if not homes:
            bare = [field for section in SECTIONS.values() for field in section.model_fields]
            hint = did_you_mean(key, bare) if did_you_mean(key, bare).startswith(" Did") else ""
            if meant := setting_meant(key):
                hint = f" Here it is {meant}."
            raise RecipeError(
                f"override '{key}': unknown key.{hint} Keys are written section.key=value (sections: "
                f"{', '.join(SECTIONS)}), a field of the model as model.{key}=value."
            )
        parts = [homes[0], *parts]
    for part in reversed(parts):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _override_layers(overrides: Sequence[str] | Mapping[str, object]) -> Iterable[_Layered]:
    if isinstance(overrides, Mapping):
        items: list[tuple[str, object]] = [(str(key), value) for key, value in overrides.items()]
    else:
        items = []
        for text in overrides:
            key, equals, written = text.partition("=")
            if not equals or not key.strip():
                raise RecipeError(f"override '{text}': should be section.key=value")
            try:
                items.append((key, parse_value(written)))
            except RecipeError as error:
                raise RecipeError(f"override '{key}': {error}") from error
    for key, value in items:
        tree = _override(key, value)
        where = f"override '{key}'"
        _check_keys(tree, where)
        yield _Layered(tree, {leaf: where for leaf, _ in leaves(tree)})


def _moved(values: Mapping[str, object], folder: Path) -> _Layered:
    """The output folder of a run: the folder that is named, wherever it was when the run began."""
    training = values.get("training")
    output = training.get("output") if isinstance(training, Mapping) else None
    if isinstance(output, str) and Path(output).resolve() == folder.resolve():
        return _Layered({}, {})
    return _Layered({"training": {"output": str(folder)}}, {})


def override_values(overrides: Sequence[str] | Mapping[str, object]) -> dict[str, object]:
    """Overrides as dotted keys with checked values.

    Raises:
        RecipeError: unknown key or wrong value.
    """
    return dict(leaves(load_recipe({}, overrides).model_dump(mode="json", exclude_unset=True)))


def written_values(path: Path) -> str:
    """A recipe file as YAML of its own: the comments on its top, and its values over those of what it extends.

    Raises:
        RecipeError: the file is no recipe.
    """
    load_recipe(path)  # its values are checked
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    top = [f"{line}\n" for line in takewhile(lambda line: line.startswith("#"), lines)]
    values = _resolve(read_yaml(path), str(path), path.parent, (path.resolve(),), {}).values
    return "".join(top) + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _flattened(value: object) -> list[object]:
    return [one for part in value for one in _flattened(part)] if isinstance(value, list | tuple) else [value]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else text[:197] + "..."


def load_recipe(
    source: str | Path | Mapping[str, object] | Recipe, overrides: Sequence[str] | Mapping[str, object] = ()
) -> Recipe:
    """Load a recipe and apply overrides.

    Args:
        source: a file, the name of a recipe, a run folder, a mapping, or a recipe.
        overrides: ``["training.epochs=3", "seeds=0,1,2"]`` or ``{"training.epochs": 3}``. The section may be omitted if
            only one section has the key.

    Raises:
        RecipeError: the recipe or a key is unknown, a value is wrong (the message names file, key and value), or
            ``extends`` goes in a circle.
    """
    if isinstance(source, Recipe):
        layered = _Layered(source.to_dict(), {})
        where = source.source
    elif isinstance(source, Mapping):
        where = "recipe"
        layered = _resolve(source, where, Path(), (), {})
    else:
        path = find_recipe(source)
        where = str(path)
        layered = _resolve(read_yaml(path), where, path.parent, (path.resolve(),), {})
        if path.name == "recipe.yaml" and (Path(source).is_dir() or (path.parent / "last").is_dir()):
            layered.add(_moved(layered.values, path.parent))
    for layer in _override_layers(overrides):
        layered.add(layer)
    for key, value in leaves(layered.values):  # JSON, in which recipes are kept, would make them null
        if any(isinstance(one, float) and not math.isfinite(one) for one in _flattened(value)):
            raise RecipeError(f"{layered.origin.get(key, where)}: {key} = {_short(value)}: should be a finite number")
    try:
        recipe = Recipe.model_validate(layered.values)
    except ValidationError as error:
        first = error.errors()[0]
        names = [str(part) for part in first["loc"]]
        key = ".".join(names)
        prefixes = (".".join(names[:length]) for length in range(len(names), 0, -1))
        origin = next((layered.origin[prefix] for prefix in prefixes if prefix in layered.origin), where)
        message = first["msg"].removeprefix("Value error, ")
        whole_section = first["type"] == "value_error" and len(names) == 1
        assignment = "" if whole_section else f"{key} = {_short(first['input'])}: "
        raise RecipeError(f"{origin}: {assignment}{message}") from None
    recipe._source = where
    recipe._comments = source.comments if isinstance(source, Recipe) else ()
    return recipe
