"""The README's tables of published commands, flags and figures agree with the recipes."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from detrkit.config import load_recipe
from tests.readme_trees import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_TABLES = README.split("## Published commands and ours")[1].split("\n## ")[0]
DE_DETR_TABLES, DEFORMABLE_TABLE, DINO_TABLE, RELATION_TABLES = re.split(
    r"\n\[(?:Deformable DETR|DINO|Relation-DETR)\]; ", COMMAND_TABLES
)
THEIR_MODELS = {
    f"{method}{theirs}": f"{method.replace('-', '_')}{ours}_r50"
    for theirs, ours in (("detr", "detr"), ("cond-detr", "conditional_detr"))
    for method in ("", "la-", "de-", "dela-")
}
# Every command of the repositories DE-DETRs and DE-CondDETR and of their branches: (model, data).
THEIR_RUNS = {
    *((model, data) for model in ("de-detr", "de-cond-detr") for data in ("cityscapes", "coco")),
    *((model, "cityscapes") for model in ("la-detr", "la-cond-detr")),
    *(
        (model, data)
        for model in ("detr", "dela-detr", "cond-detr", "dela-cond-detr")
        for data in ("cityscapes", "coco", "cocodown")
    ),
}


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text, headings left out."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return [row for index, row in enumerate(rows) if not (_is_rule(row) or _is_rule(rows[(index + 1) % len(rows)]))]


def _is_rule(row: list[str]) -> bool:
    return set("".join(row)) == {"-"}


def flags(command: str) -> dict[str, str | None]:
    """``--a 1 --b`` as a dictionary."""
    found: dict[str, str | None] = {}
    for word in shlex.split(command):
        if word.startswith("--"):
            found[word] = None
        else:
            found[next(reversed(found))] = word
    return found


RUNS = [row for row in table_rows(DE_DETR_TABLES) if "--model " in row[0] and "detrkit train" in row[1]]


def test_every_published_command_has_its_line() -> None:
    """Both repositories with their baseline branches; the sampled data with and without repeats; evaluation."""
    shown = [flags(re.findall(r"`(--[^`]+)`", theirs)[0]) for theirs, _ in RUNS]
    assert {(row["--model"], row["--dataset_file"]) for row in shown} == THEIR_RUNS
    assert any("--sample_repeat" in row for row in shown)
    assert any("--no_ms_roi" in row for row in shown)
    assert DE_DETR_TABLES.count("--resume X --eval`, e.g.") == 2
    assert len(re.findall(r"`detrkit eval recipes/\S+ --checkpoint X`", DE_DETR_TABLES)) == 2


@pytest.mark.parametrize(("theirs", "ours"), RUNS, ids=[row[0] for row in RUNS])
def test_our_line_means_the_published_one(theirs: str, ours: str) -> None:
    """Model, data, epochs, processes, batch and every flag of the published command are those of our recipe."""
    from detrkit.models import model_config

    (command,) = re.findall(r"`(--[^`]+)`", theirs)
    want = flags(command)
    words = shlex.split(ours.strip("`"))
    place = words.index("train")
    recipe = load_recipe(words[place + 1], [word for word in words[place + 2 :] if "=" in word])
    config: Any = model_config(recipe.model.name, **recipe.model.overrides)
    conditional = "cond" in str(want["--model"])
    processes = words[words.index("--num_processes") + 1]
    assert f"N={processes}" in theirs
    assert recipe.optimizer.lr_batch_size == int(processes) * recipe.training.batch_size
    assert recipe.training.batch_size == int(want.pop("--batch_size") or 0)
    assert recipe.training.epochs == (300 if "300 epochs" in theirs else 50)
    assert ("--wandb" in words) == ("--wandb" in want)
    want.pop("--wandb", None)
    assert recipe.model.name == THEIR_MODELS[str(want.pop("--model"))]
    assert recipe.data.format == str(want.pop("--dataset_file")).replace("cocodown", "coco")
    assert recipe.data.root == want.pop("--coco_path")
    assert str(recipe.data.sample_rate) == str(want.pop("--sample_rate", None))
    assert recipe.data.sample_repeat == ("--sample_repeat" in want)
    want.pop("--sample_repeat", None)
    assert config.num_queries == int(want.pop("--num_queries", None) or (300 if conditional else 100))
    assert str(config.repeat_label) == str(want.pop("--repeat_label", None))
    assert (config.nms, config.nms_decay) == ((0.7, None if conditional else 0.01) if "--nms" in want else (None, None))
    want.pop("--nms", None)
    levels = getattr(config, "num_feature_levels", None)
    if "--no_ms_roi" in want:
        assert levels == int(want.pop("--num_feature_levels") or 0)
        want.pop("--no_ms_roi")
    else:
        assert levels in (None, 3)
    assert not want, "a flag that this test does not know"


# The scripts in configs/ of Deformable-DETR and the flags they give to main.py (defaults: 4 levels, 2 images each).
THEIR_CONFIGS: dict[str, dict[str, Any]] = {
    "r50_deformable_detr": {},
    "r50_deformable_detr_single_scale": {"num_feature_levels": 1},
    "r50_deformable_detr_single_scale_dc5": {"num_feature_levels": 1, "dilation": True},
    "r50_deformable_detr_plus_iterative_bbox_refinement": {"refine_boxes": True},
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": {"refine_boxes": True, "two_stage": True},
}
DEFORMABLE_RUNS = [row for row in table_rows(DEFORMABLE_TABLE) if "detrkit train" in row[1]]


def test_every_script_of_deformable_detr_has_its_line() -> None:
    assert {re.findall(r"configs/(\w+)\.sh", theirs)[0] for theirs, _ in DEFORMABLE_RUNS} == THEIR_CONFIGS.keys()
    assert "detrkit eval" in DEFORMABLE_TABLE


def our_run(line: str) -> tuple[Any, Any, int]:
    """Recipe, model configuration and number of processes of one of our training lines."""
    from detrkit.models import model_config

    words = shlex.split(line.strip("`"))
    place = words.index("train")
    recipe = load_recipe(words[place + 1], [word for word in words[place + 2 :] if "=" in word])
    processes = int(words[words.index("--num_processes") + 1]) if "--num_processes" in words else 1
    return recipe, model_config(recipe.model.name, **recipe.model.overrides), processes


@pytest.mark.parametrize(("theirs", "ours"), DEFORMABLE_RUNS, ids=[row[0] for row in DEFORMABLE_RUNS])
def test_our_line_means_the_script_of_deformable_detr(theirs: str, ours: str) -> None:
    recipe, config, processes = our_run(ours)
    number, script = re.findall(r"launch\.sh (\d+) \./configs/(\w+)\.sh", theirs)[0]
    settings = {"num_feature_levels": 4, "dilation": False, "refine_boxes": False, "two_stage": False}
    settings |= {"num_queries": 300, "ffn_dim": 1024, "dropout": 0.1, "encoder_layers": 6, "decoder_layers": 6}
    settings |= {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2, "loss_class": 2, "loss_bbox": 5, "loss_giou": 2}
    for key, value in (settings | THEIR_CONFIGS[script]).items():
        assert getattr(config, key) == value, key
    assert (processes, recipe.training.batch_size) == (int(number), 2)
    assert (recipe.training.epochs, recipe.schedule.drop, recipe.data.root) == (50, [40], "data/coco")
    rates = (recipe.optimizer.lr, recipe.optimizer.lr_backbone, recipe.optimizer.lr_sampling)
    assert rates == (2e-4, 2e-5, 2e-5)
    assert recipe.optimizer.lr_batch_size == 32


# The training scripts of DINO: configuration, processes and images a process.
THEIR_SCRIPTS = {
    "DINO_train": ("dino_r50_4scale", 1, 2),
    "DINO_train_dist": ("dino_r50_4scale", 8, 2),
    "DINO_train_submitit": ("dino_r50_4scale", 8, 2),
    "DINO_train_submitit_5scale": ("dino_r50_5scale", 16, 1),
    "DINO_train_submitit_swin": ("dino_swin_l_4scale", 8, 2),
}
DINO_RUNS = [row for row in table_rows(DINO_TABLE) if "detrkit train" in row[1]]


def test_our_lines_mean_the_scripts_of_dino() -> None:
    found = {}
    for theirs, ours in DINO_RUNS:
        recipe, config, processes = our_run(ours)
        found[re.findall(r"scripts/(\w+)\.sh", theirs)[0]] = (recipe.model.name, processes, recipe.training.batch_size)
        assert (recipe.training.epochs, recipe.schedule.drop, recipe.data.root) == (12, [11], "data/coco")
        # 1.0 in every script, whatever the configuration file says
        assert (config.denoising_box_noise, config.denoising_label_noise, config.denoising_queries) == (1.0, 0.5, 100)
        assert (recipe.optimizer.lr, recipe.optimizer.lr_backbone, recipe.optimizer.lr_sampling) == (1e-4, 1e-5, None)
        whole = processes * recipe.training.batch_size == recipe.optimizer.lr_batch_size
        assert whole or recipe.optimizer.lr_scaling == "none"
    assert found == THEIR_SCRIPTS
    assert "DINO_eval.sh" in DINO_TABLE


RELATION_COMMANDS, RELATION_CONFIGS, RELATION_SETTINGS = (
    table_rows(text)
    for text in re.split(r"The other configurations:|And what else stands", RELATION_TABLES.split("Most lines")[0])
)


def test_our_lines_launch_what_theirs_launch() -> None:
    """The same devices, and the recipe of what they name; evaluation reads any checkpoint."""
    for theirs, ours in RELATION_COMMANDS:
        (command,), (line,) = re.findall(r"^`([^`]+)`", theirs), re.findall(r"^`([^`]+)`", ours)
        devices = re.findall(r"CUDA_VISIBLE_DEVICES=(\S+)", command)
        if "score" in line:
            assert "--result " in command
            continue
        assert re.findall(r"CUDA_VISIBLE_DEVICES=(\S+)", line) == devices
        # one device needs no launcher; without a number of processes accelerate takes all that are visible
        assert ("accelerate launch -m" in line) == (devices != ["0"])
        assert ("train" in line) == ("main.py" in command or "train.py" in command)
        family = "salience_detr" if "alience" in theirs else "dape" if "DAPE" in theirs else "relation_detr"
        assert f"recipes/{family}/" in line
        if found := re.findall(r"`(dape_\w+)`", theirs):
            assert f"/{found[0]}.yaml" in line
        assert line.endswith("--checkpoint X") == command.endswith("--checkpoint X")


def test_every_configuration_of_the_relation_repositories_has_its_recipe() -> None:
    names = {"resnet50": "r50", "resnet50_5scale": "r50_5scale", "focalnet_large_lrf_fl4": "focalnet_l"}
    names |= {"focalnet_large_lrf": "focalnet_l", "swin_l": "swin_l", "convnext_l": "convnext_l"}
    shown = []
    for theirs, ours in RELATION_CONFIGS:
        family, backbone, size = re.findall(r"^`(\w+?_detr)_(\w+)_(\d+_\d+)`", theirs)[0]
        links = re.findall(r"\]\((recipes/.+?)\)", ours)
        shown += [link for link in links if "/coco/" in link]
        for link in links:
            recipe = load_recipe(ROOT / link)
            assert recipe.model.name == f"{family}_{names[backbone]}"
            _, config, _ = our_run(f"detrkit train {link}")
            sizes = (
                recipe.data.eval_short_side or config.eval_short_side,
                recipe.data.eval_max_side or config.eval_max_side,
            )
            assert f"{sizes[0]}_{sizes[1]}" == size
            settings = {"num_queries": 900, "num_feature_levels": 5 if "fl4" in backbone else 4, "size_divisor": 32}
            settings |= {"denoising_queries": 1000 if size == "1200_2000" else 100, "eval_resize": "float32_truncate"}
            for key, value in settings.items():
                assert getattr(config, key) == value, (link, key)
    assert set(shown) == {
        path.relative_to(ROOT).as_posix()
        for family in ("relation_detr", "salience_detr")
        for path in (ROOT / "recipes" / family / "coco").glob("*.yaml")
    }


def test_settings_of_the_relation_repositories_exist() -> None:
    for _, ours in RELATION_SETTINGS:
        for code in re.findall(r"`([^`]*=[^`]*)`", ours):
            recipe = load_recipe("relation_detr/coco/relation_detr_r50_coco_12ep", code.split())
            for key, value in (word.split("=") for word in code.split()):
                assert recipe.flat()[key] == yaml.safe_load(value), key


FLAGS = table_rows(COMMAND_TABLES.split("Single flags")[1])
# What `main.py --help` of DE-DETRs and DE-CondDETR lists.
THEIR_FLAGS = set(
    re.findall(
        r"\w+",
        """
        backbone batch_size bbox_loss_coef cache_mode clip_max_norm cls_loss_coef coco_panoptic_path coco_path
        dataset_file dec_layers device dice_loss_coef dilation dim_feedforward dist_url dropout enc_layers eos_coef
        epochs eval focal_alpha frozen_weights giou_loss_coef hidden_dim init_ref_dim lr lr_backbone lr_drop
        mask_loss_coef masks model nheads nms nms_remove nms_thresh no_aux_loss no_box_refine no_ms_roi
        num_feature_levels num_queries num_workers output_dir pool_res position_embedding pre_nms pre_norm
        remove_difficult repeat_label repeat_ratio resume sample_rate sample_repeat seed set_cost_bbox set_cost_class
        set_cost_giou start_epoch two_stage_match wandb weight_decay world_size
        """,
    )
)


def test_every_flag_has_its_line() -> None:
    assert set(re.findall(r"--(\w+)", " ".join(theirs for theirs, _ in FLAGS))) == THEIR_FLAGS
    own = set(re.findall(r"`(--\w+)", " ".join(ours for _, ours in FLAGS)))
    assert own == {"--output", "--wandb", "--resume"}
    assert own <= set(our_options("train"))
    assert "--checkpoint" in our_options("eval")


def our_options(name: str) -> set[str]:
    """The options of one of our commands."""
    import typer.main

    from detrkit.cli.main import app

    command: Any = typer.main.get_command(app)
    return {option for parameter in command.commands[name].params for option in parameter.opts}


OVERRIDES = [(theirs, code) for theirs, ours in FLAGS for code in re.findall(r"`([^`]*\w=[^`]*)`", ours)]


@pytest.mark.parametrize(("theirs", "code"), OVERRIDES, ids=[code for _, code in OVERRIDES])
def test_flags_do_what_the_table_says(theirs: str, code: str) -> None:
    """The keys exist, take the value that stands in the published flag, and leave a model that builds."""
    import torch

    import detrkit

    base = "detr_r50_cityscapes_300ep" if "branch `detr`" in theirs else "de_detr_r50_cityscapes_50ep"
    overrides = code.split()
    recipe = load_recipe(f"de_detr/cityscapes/{base}", overrides)
    for key, value in (word.split("=") for word in overrides):
        told = recipe.flat()[key]
        assert told == yaml.safe_load(value) or told == [yaml.safe_load(value)] or told == float(value)
        number = re.fullmatch(r"[\d.]+(e-\d)?", value)
        assert not number or value in theirs
    with torch.device("meta"):
        model = detrkit.create_model(recipe.model.name, num_classes=8, **recipe.model.overrides)
    for key, value in recipe.model.overrides.items():
        assert getattr(model.config, key) == value


PUBLISHED_TABLES = README.split("**Published**")[1].split("**Measured**")[0]
SOURCES = {
    "[DETR] zoo": r"\(DETR repository",
    "[Conditional DETR] zoo": r"\(Conditional DETR repository",
    "[Deformable DETR]": r"\(Deformable DETR repository\)",
    "[DINO]": r"\(DINO repository\)",
    "[Relation-DETR]": r"\(Relation-DETR repository\)",
    "[Salience-DETR]": r"\(Salience-DETR repository\)",
    "[DAPE]": r"\(DAPE repository\)",
    "[DE-DETRs]": r"\(DE-DETRs repository\)",
    "[DE-CondDETR]": r"\(DE-CondDETR repository\)",
    "[DE-DETRs], one run": r"\(DE-DETRs repository, one run\)",
    "[DE-CondDETR], one run": r"\(DE-CondDETR repository, one run\)",
    "[paper], Figure 1": "paper, Figure 1",
    "[paper], Table 2, mean of 5 seeds": "Mean of five seeds in the paper's Table 2",
}


def recipe_header(path: str) -> list[str]:
    return [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if line.startswith("#")]


def test_published_figures_stand_in_the_recipes() -> None:
    """Each row is in the header of the recipe it names, with its source, and each published recipe has its row."""
    results, ablation, sampled = (
        table_rows(part) for part in re.split(r"\n\n(?=What each|AP on COCO)", PUBLISHED_TABLES)
    )
    named = set()
    for model, data, epochs, *figures, source in results:
        path = re.findall(r"\((recipes/.+)\)", model)[0]
        numbers = " / ".join(figure for figure in figures if figure)
        line = [line for line in recipe_header(path) if re.search(rf"(?<![\d./] ){re.escape(numbers)}(?! /|\d)", line)]
        assert line, f"{path}: {numbers}"
        assert re.search(SOURCES[source], line[0]), f"{path}: {source}"
        recipe = load_recipe(ROOT / path)
        assert recipe.training.epochs == int(epochs)
        assert recipe.data.root == f"data/{data.lower().replace('-', '_')}"
        named.add(path)
    for sparse, multi_scale, augmented, *figures, recipe_link in ablation:
        path = re.findall(r"\((recipes/.+)\)", recipe_link)[0]
        assert " / ".join(figures) in "\n".join(recipe_header(path))
        name = load_recipe(ROOT / path).model.name
        assert (sparse, augmented) == ("✓" if "de" in name.split("_")[0] else "", "✓" if "la_" in name else "")
        assert multi_scale == ("" if "single_scale" in path else sparse)
        named.add(path)
    for model, *aps in sampled:
        stem = model.lower().replace("-", "_").replace(" ", "_")
        for percent, ap in zip((1, 2, 5, 10), aps, strict=True):
            path = f"recipes/de_detr/coco_sampled/{stem}_r50_coco_{percent}pct_50ep.yaml"
            assert f"# Published AP: {ap} (paper, Figure 4, read off the plot, so ±0.3)." in recipe_header(path)
            named.add(path)
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}
    assert named == {path for path in recipes if any(line.startswith("# Published AP") for line in recipe_header(path))}
