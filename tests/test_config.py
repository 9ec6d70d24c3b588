"""Recipes: reading, extends, overrides, and errors that name file, key and value."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from detrkit.config import Recipe, find_recipe, list_recipes, load_recipe
from detrkit.config.recipe_files import parse_value, read_yaml
from detrkit.errors import RecipeError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_values_and_defaults(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "model: {name: detr_r50, num_queries: 7}\noptimizer:\n  lr: 3e-4\n")
    recipe = load_recipe(file)
    assert recipe.model.name == "detr_r50"
    assert recipe.model.overrides == {"num_queries": 7}
    assert recipe.optimizer.lr == 3e-4
    assert recipe.optimizer.lr_backbone == 1e-5
    assert recipe.training.clip_norm == 0.1
    assert recipe.source == str(file)


def test_scientific_notation_is_a_number_everywhere(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "a.yaml", "optimizer: {lr: 1e-4}\nmodel: {dropout: 1E-2, tag: '1e-4'}\n"))
    assert recipe.optimizer.lr == 1e-4
    assert recipe.model.overrides == {"dropout": 0.01, "tag": "1e-4"}


def test_extends_is_relative_and_later_bases_override_earlier_ones(tmp_path: Path) -> None:
    write(tmp_path / "base" / "data.yaml", "data: {root: here, flip: 0.25}\ntraining: {epochs: 3, batch_size: 9}\n")
    write(tmp_path / "base" / "long.yaml", "extends: data.yaml\ntraining: {epochs: 30}\n")
    file = write(tmp_path / "own" / "r.yaml", "extends: [../base/data.yaml, ../base/long]\ndata: {root: there}\n")
    recipe = load_recipe(file)
    assert (recipe.training.epochs, recipe.training.batch_size) == (30, 9)
    assert (recipe.data.root, recipe.data.flip) == ("there", 0.25)


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    write(tmp_path / "b.yaml", "extends: c.yaml\n")
    file = write(tmp_path / "c.yaml", "extends: a.yaml\n")
    with pytest.raises(RecipeError, match=r"b\.yaml: extends goes in a circle: c\.yaml -> a\.yaml -> b\.yaml -> c"):
        load_recipe(file)


def test_the_same_base_twice_is_not_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "training: {seed: 4}\n")
    write(tmp_path / "b.yaml", "extends: base.yaml\n")
    assert load_recipe(write(tmp_path / "c.yaml", "extends: [base.yaml, b.yaml]\n")).training.seed == 4


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.epochs=3", "training.epochs", 3),
        ("epochs=3", "training.epochs", 3),
        ("seeds=0,1,2,3,4", "training.seeds", [0, 1, 2, 3, 4]),
        ("seeds=3", "training.seeds", [3]),
        ("seeds=[1, 2]", "training.seeds", [1, 2]),
        ("lr=1e-3", "optimizer.lr", 1e-3),
        ("schedule.drop=20", "schedule.drop", [20.0]),
        ("drop=7.5,9", "schedule.drop", [7.5, 9.0]),
        ("clip_norm=null", "training.clip_norm", None),
        ("training.ema=", "training.ema", None),
        ("betas=0.8,0.95", "optimizer.betas", [0.8, 0.95]),
        ("data.train.annotations=a,b.json", "data.train.annotations", "a,b.json"),
        ("data.root=2024", "data.root", "2024"),
        ("model.nms=0.5", "model.nms", 0.5),
        ("model.train_short_sides=64,96", "model.train_short_sides", [64, 96]),
        ("model.backbone=resnet18", "model.backbone", "resnet18"),
        ("init=a=b.pth", "model.init", "a=b.pth"),
    ],
)
def test_overrides(override: str, key: str, value: Any) -> None:
    recipe = load_recipe({"schedule": {"kind": "multistep"}}, [override])
    assert recipe.flat()[key] == value


def test_overrides_as_a_mapping() -> None:
    recipe = load_recipe({}, {"epochs": 3, "data.root": "x", "model": {"num_queries": 5, "sides": [1, 2]}})
    assert (recipe.training.epochs, recipe.data.root) == (3, "x")
    assert recipe.model.overrides == {"num_queries": 5, "sides": (1, 2)}


def test_iterations_replace_the_epochs_of_the_base() -> None:
    recipe = load_recipe({"training": {"epochs": 50}}, ["iterations=500"])
    assert (recipe.training.epochs, recipe.training.iterations) == (None, 500)
    with pytest.raises(RecipeError, match=r"training\.epochs or training\.iterations, not both"):
        load_recipe({"training": {"epochs": 50, "iterations": 3}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", r"r\.yaml: unknown key 'training\.epoch'\. Did you mean 'epochs'\?"),
        ("trainin: {epochs: 3}", r"r\.yaml: unknown key 'trainin'\. Did you mean 'training'\?"),
        ("lr: 3", r"r\.yaml: unknown key 'lr'\. It belongs to a section: optimizer\.lr"),
        ("data: {train: {image: x}}", r"r\.yaml: unknown key 'data\.train\.image'\. Did you mean 'images'\?"),
        ("training: {epochs: many}", r"r\.yaml: training\.epochs = 'many': .*integer"),
        ("training: {epochs: true}", r"r\.yaml: training\.epochs = True: .*number"),
        ("training: {epochs: 0}", r"r\.yaml: training\.epochs = 0: .*greater than or equal to 1"),
        ("training: {precision: fp8}", r"r\.yaml: training\.precision = 'fp8': .*'fp32', 'bf16' or 'fp16'"),
        ("training: {device: tpu}", r"r\.yaml: training\.device = 'tpu'"),
        ("training: {seeds: [1, 1]}", r"names a seed twice"),
        ("optimizer: {lr: .nan}", r"r\.yaml: optimizer\.lr = nan: .*finite"),
        ("optimizer: {lr: -1}", r"r\.yaml: optimizer\.lr = -1: .*greater than 0"),
        ("schedule: {drop: [1, x]}", r"r\.yaml: schedule\.drop\.1 = 'x': .*number"),
        ("schedule: {drop: [1, 2]}", r"'multistep' for several"),
        ("data: {root: [a]}", r"r\.yaml: data\.root = \['a'\]: .*string"),
        ("data: 3", r"r\.yaml: data = 3: should be a mapping"),
        ("training: {epochs: 3, epochs: 4}", r"r\.yaml: not valid YAML: key 'epochs' twice.*line 1"),
        ("training: {epochs: 3", r"r\.yaml: not valid YAML"),
        ("- 3", r"r\.yaml: a recipe is a mapping"),
        ("extends: nowhere.yaml", r"r\.yaml: extends = 'nowhere\.yaml': no such file"),
        ("extends: 3", r"r\.yaml: extends = "),
        ("1: {a: 2}", r"r\.yaml: key 1 is not text"),
    ],
)
def test_errors_name_file_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(tmp_path / "r.yaml", text))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_error_names_the_file_that_sets_the_value(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "optimizer: {lr: fast}\n")
    file = write(tmp_path / "own.yaml", "extends: base.yaml\noptimizer: {weight_decay: 0}\n")
    with pytest.raises(RecipeError, match=r"base\.yaml: optimizer\.lr = 'fast'"):
        load_recipe(file)
    with pytest.raises(RecipeError, match=r"override 'lr': optimizer\.lr = 'slow'"):
        load_recipe(file, ["lr=slow"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", r"override 'epoch': unknown key\. Did you mean 'epochs'\?.*model\.epoch=value"),
        ("training.epoch=3", r"override 'training\.epoch': unknown key 'training\.epoch'\. Did you mean 'epochs'\?"),
        ("data.workers=3", r"unknown key 'data\.workers'\. It belongs to a section: training\.workers"),
        ("nowhere.epochs=3", r"override 'nowhere\.epochs': unknown key 'nowhere'"),
        ("epochs", r"override 'epochs': should be section\.key=value"),
        ("=3", r"should be section\.key=value"),
        ("data=3", r"override 'data': data = 3: should be a mapping"),
        ("epochs.more=3", r"override 'epochs\.more': unknown key 'epochs'"),
    ],
)
def test_override_errors(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe({}, [override])


def test_an_unknown_recipe_gives_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'dela_detr_lte0'.*Nearest: 'dela_detr_lite0'"):
        load_recipe("dela_detr_lte0")


def test_a_data_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"folder without a recipe\.yaml"):
        load_recipe(tmp_path)


def test_packaged_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = list_recipes()
    assert "de_detr/blood_cells/dela_detr_lite0" in names
    assert not [name for name in names if "_base" in name]
    full = find_recipe("recipes/de_detr/blood_cells/dela_detr_lite0.yaml")
    assert full == find_recipe("de_detr/blood_cells/dela_detr_lite0") == find_recipe("dela_detr_lite0")


def test_the_local_recipes_folder_is_searched_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "recipes" / "dela_detr_lite0.yaml", "training: {epochs: 2}\n")
    assert load_recipe("dela_detr_lite0").training.epochs == 2
    write(tmp_path / "recipes" / "a" / "twin.yaml", "")
    write(tmp_path / "recipes" / "b" / "twin.yaml", "")
    with pytest.raises(RecipeError, match=r"'twin' is ambiguous: a/twin\.yaml, b/twin\.yaml"):
        load_recipe("twin")


def test_a_run_folder_is_a_recipe(tmp_path: Path) -> None:
    write(tmp_path / "recipe.yaml", "training: {epochs: 2}\n")
    assert load_recipe(tmp_path).training.epochs == 2


@pytest.mark.parametrize("name", list_recipes())
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["seeds=0,1", "model.train_short_sides=64,96"])
    again = load_recipe(write(tmp_path / "r.yaml", recipe.to_yaml()))
    assert again.flat() == recipe.flat()
    assert again.model.overrides == recipe.model.overrides


@given(
    lr=st.floats(1e-12, 1e3, allow_nan=False),
    epochs=st.integers(1, 10**6),
    root=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1),
)
def test_any_value_is_the_same_after_a_round_trip(lr: float, epochs: int, root: str) -> None:
    recipe = load_recipe({"optimizer": {"lr": lr}, "training": {"epochs": epochs}, "data": {"root": root}})
    again = load_recipe(yaml.safe_load(recipe.to_yaml()))
    assert again.flat() == recipe.flat()


def test_reading_recipes_loads_no_torch() -> None:
    code = "import sys, detrkit.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_overrides_do_not_change_the_given_recipe() -> None:
    recipe = load_recipe({"training": {"epochs": 3}})
    again = load_recipe(recipe, ["epochs=4"])
    assert isinstance(again, Recipe)
    assert (recipe.training.epochs, again.training.epochs) == (3, 4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("+5", 5),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("~", None),
        ("2024-01-05", "2024-01-05"),
        ("0,1,2", [0, 1, 2]),
        ("@home", "@home"),
        ("[" * 3000, "[" * 3000),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    """In YAML 1.1, 010 is 8, 1:30 is 90 and yes is true."""
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)
    if text not in ("@home", "0,1,2", "[" * 3000):
        (tmp_path / "recipe.yaml").write_text(f"key: {text}\n", encoding="utf-8")
        assert read_yaml(tmp_path / "recipe.yaml") == {"key": value}


def test_truth_values_of_recipe_keys_may_be_yes_and_no() -> None:
    assert load_recipe({}, ["data.crop=no"]).data.crop is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? [a]\n: 1", "a key that is not text"),
        ("model: &m {name: detr_lite0, x: *m}", "an alias to a value that contains it"),
        ("training: {output: 2024-13-45}", "2024-13-45 is not a date; in quotes it is text"),
        ("training: {epochs: !!int abc}", "abc is not a whole number"),
        ("training: {epochs: " + "9" * 5000 + "}", "is not a whole number"),
        ("model: " + "{a: " * 500 + "1" + "}" * 500, "more than 20 levels of nesting"),
        (
            "a0: &a0 [x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
            "more than 10,000 values",
        ),
        ("model: !!python/name:os.system x", "could not determine a constructor"),
    ],
)
def test_recipe_files_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"bad\.yaml: not valid YAML: .*{message}"):
        load_recipe(tmp_path / "bad.yaml")


def test_overrides_that_are_not_what_they_look_like() -> None:
    for value in ("2024-13-45", "!!int abc", "9" * 5000):
        with pytest.raises(RecipeError, match=r"override 'training\.output': .* is not a .*in quotes it is text"):
            load_recipe({}, [f"training.output={value}"])


def test_recipes_that_extend_each_other_are_read_once(tmp_path: Path) -> None:
    """Read anew for every path through the tree, these would be 2 to the power of 40 files."""
    (tmp_path / "r0.yaml").write_text("model: {num_queries: 7}", encoding="utf-8")
    for number in range(1, 41):
        name = f"r{number - 1}.yaml"
        (tmp_path / f"r{number}.yaml").write_text(f"extends: [{name}, {name}]", encoding="utf-8")
    assert load_recipe(tmp_path / "r40.yaml").model.overrides == {"num_queries": 7}
    for number in range(41, 80):
        (tmp_path / f"r{number}.yaml").write_text(f"extends: r{number - 1}.yaml", encoding="utf-8")
    with pytest.raises(RecipeError, match="more than 50 recipes extend each other in a row"):
        load_recipe(tmp_path / "r79.yaml")
