"""Recipe files: reading their YAML, and finding them by name."""

from __future__ import annotations

import datetime
import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from detrkit.config.schema import SECTIONS
from detrkit.errors import RecipeError

__all__ = ["find_recipe", "list_recipes", "parse_value", "read_yaml"]


_MAX_DEPTH = 20  # levels of nesting; a recipe has four
_MAX_VALUES = 10_000  # with every alias written out


class _Loader(yaml.SafeLoader):
    """YAML with the numbers, truth values and null of YAML 1.2, of bounded size; a duplicate key is an error.

    In YAML 1.1, which PyYAML reads, ``010`` is 8, ``1:30`` is 90, ``no`` is false and ``1e-4`` is text. A date stays
    text, but must be a date: nobody calls a folder 2024-13-45.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # id of a node -> values in it, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and count what is in it, before anything is built from it."""
        if self._depth > _MAX_DEPTH:
            mark = parent.start_mark if parent is not None else None
            raise yaml.composer.ComposerError(None, None, f"more than {_MAX_DEPTH} levels of nesting", mark)
        alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and id(node) not in self._sizes:
            mark = node.start_mark
            if alias:
                raise yaml.composer.ComposerError(None, None, "an alias to a value that contains it", mark)
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = (value if isinstance(value, tuple) else (value,) for value in inner)
            size = 1 + sum(self._sizes[id(part)] for pair in pairs for part in pair)
            if size > _MAX_VALUES:
                raise yaml.composer.ComposerError(None, None, f"more than {_MAX_VALUES:,} values", mark)
            self._sizes[id(node)] = size
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """Build a mapping whose keys are text and different."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                problem = "a key that is not text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key_node.value in seen:
                problem = f"key '{key_node.value}' twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value; a text that its tag cannot be (``!!int abc``, 5,000 digits) is a YAML error too."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, OverflowError, KeyError) as error:
            kind = {"timestamp": "date", "int": "whole number"}.get(node.tag.rpartition(":")[2], node.tag)
            problem = f"{str(node.value)[:40]} is not a {kind}; in quotes it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    sign, digits = (text[:1], text[1:]) if text[:1] in ("-", "+") else ("", text)
    return int(sign + digits, {"0o": 8, "0x": 16}.get(digits[:2], 10))


def _date(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    datetime.date.fromisoformat(text)
    return text


_PLAIN = {  # tag -> (what is written for it in YAML 1.2, first characters)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|[-+]?0o[0-7]+|[-+]?0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "timestamp": (r"[0-9]{4}-[0-9]{2}-[0-9]{2}", "0123456789"),
    "merge": (r"<<", "<"),
}
_Loader.yaml_implicit_resolvers = {}  # not those of YAML 1.1
for _tag, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _date)


def read_yaml(path: Path) -> dict[str, object]:
    """Read the values of a recipe file; an empty file has none.

    Raises:
        RecipeError: the file cannot be read or is not a YAML mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
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
    """Parse the value of an override as YAML; ``0,1,2`` is a list of numbers, and what is not YAML is text.

    Raises:
        RecipeError: a value that is not of the kind that it looks like.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
        if isinstance(value, str) and "," in value:
            parts = [yaml.load(part, Loader=_Loader) for part in value.split(",") if part.strip()]
            if parts and all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts):
                return parts
    except yaml.constructor.ConstructorError as error:
        raise RecipeError(str(error.problem)) from error
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
    if not str(name).strip():
        raise RecipeError("the name of the recipe is empty: a shell variable without a value?")
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
