"""Recipe files: reading their YAML, and finding them by name."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import yaml

from detrkit.config.schema import SECTIONS
from detrkit.errors import RecipeError

__all__ = ["find_recipe", "list_recipes", "parse_value", "read_yaml"]


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number (YAML 1.1 requires ``1.0e-4``) and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                problem = f"key '{key_node.value}' twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, object]:
    """Read the values of a recipe file; an empty file has none.

    Raises:
        RecipeError: the file cannot be read or is not a YAML mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections ({', '.join(SECTIONS)})")
    return values


def parse_value(text: str) -> object:
    """Parse the value of an override as YAML; ``0,1,2`` is a list of numbers."""
    try:
        value = yaml.load(text, Loader=_Loader)
        if isinstance(value, str) and "," in value:
            parts = [yaml.load(part, Loader=_Loader) for part in value.split(",") if part.strip()]
            if parts and all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts):
                return parts
    except yaml.YAMLError:
        return text
    return value


def _recipe_roots() -> list[Path]:
    """The recipe folders: ./recipes, those in the package, and those in the checkout of an editable install."""
    package = Path(__file__).resolve().parents[1]
    roots: dict[Path, Path] = {}
    for root in (Path("recipes"), package / "recipes", package.parents[1] / "recipes"):
        if root.is_dir():
            roots.setdefault(root.resolve(), root)
    return list(roots.values())


def _recipes_in(root: Path) -> list[Path]:
    """Recipe files in a folder and its subfolders, relative to it; names with a leading underscore are only bases."""
    files = (file.relative_to(root) for file in root.rglob("*.yaml"))
    return sorted(file for file in files if not any(part.startswith("_") for part in file.parts))


def list_recipes() -> list[str]:
    """Names of the recipes in ./recipes and in detrkit, for example ``detr/coco/detr_r50_coco_500ep``."""
    return sorted({file.with_suffix("").as_posix() for root in _recipe_roots() for file in _recipes_in(root)})


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe. name: a path, a run folder, or the name of a recipe with or without folders and ``.yaml``.

    Raises:
        RecipeError: no recipe or several recipes have that name.
    """
    path = Path(name)
    if path.is_dir():
        if (path / "recipe.yaml").is_file():
            return path / "recipe.yaml"
        raise RecipeError(f"{path} is a folder without a recipe.yaml; a data folder is given with --data or data.root")
    for candidate in (path, Path(f"{path}.yaml")):
        if candidate.is_file():
            return candidate
    wanted = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    parts = wanted.parts[1:] if wanted.parts[:1] == ("recipes",) else wanted.parts
    for root in _recipe_roots():
        found = root.joinpath(*parts[:-1], f"{wanted.name}.yaml")
        if found.is_file():
            return found
        same = [file for file in _recipes_in(root) if len(parts) == 1 and file.stem == wanted.name]
        if len(same) > 1:
            raise RecipeError(f"recipe '{name}' is ambiguous: {', '.join(file.as_posix() for file in same)}")
        if same:
            return root / same[0]
    known = list_recipes()
    known += [recipe.rsplit("/", 1)[-1] for recipe in known]
    near = difflib.get_close_matches(Path(*parts).as_posix() if parts else "", known, n=1, cutoff=0)
    hint = f" Nearest: '{near[0]}'." if near else ""
    raise RecipeError(f"no recipe '{name}': no such file, and no recipe of that name.{hint}")
