"""Published commands, flags, settings and figures mean what the recipes do."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml
from generator.headers import PAPER, Command, Header, headers

from detrkit.config import load_recipe
from tests.workplace import ROOT

PAGE = (ROOT / "docs" / "published_commands.md").read_text(encoding="utf-8")
HEADERS = headers()
COMMANDS = [command for header in HEADERS for command in header.commands]


def of(repository: str, kind: str = "command") -> list[Command]:
    """What a repository publishes: its training commands, or its evaluations."""
    return [command for command in COMMANDS if command.repository == repository and command.kind == kind]


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


def our_run(line: str) -> tuple[Any, Any, int]:
    """Recipe, model configuration and number of processes of one of our training lines."""
    from detrkit.models import model_config

    words = shlex.split(line)
    place = words.index("train")
    recipe = load_recipe(words[place + 1], [word for word in words[place + 2 :] if "=" in word])
    processes = int(words[words.index("--num_processes") + 1]) if "--num_processes" in words else 1
    return recipe, model_config(recipe.model.name, **recipe.model.overrides), processes


RUNS = [*of("DE-DETRs"), *of("DE-CondDETR")]


def test_every_published_command_has_its_line() -> None:
    """Both repositories with their baseline branches; the sampled data with and without repeats; evaluation."""
    shown = [flags(command.theirs) for command in RUNS]
    assert {(row["--model"], row["--dataset_file"]) for row in shown} == THEIR_RUNS
    assert any("--sample_repeat" in row for row in shown)
    for repository in ("DE-DETRs", "DE-CondDETR"):
        (evaluation,) = of(repository, "evaluation")
        assert evaluation.theirs == "<training command> --resume X --eval"
        assert re.fullmatch(r"detrkit eval recipes/\S+ --checkpoint X", evaluation.ours)


@pytest.mark.parametrize("command", RUNS, ids=lambda command: command.theirs)
def test_our_line_means_the_published_one(command: Command) -> None:
    """Model, data, epochs, processes, batch and every flag of the published command are those of our recipe."""
    want = flags(command.theirs)
    recipe, config, processes = our_run(command.ours)
    conditional = "cond" in str(want["--model"])
    assert processes == command.processes
    assert recipe.optimizer.lr_batch_size == processes * recipe.training.batch_size
    assert recipe.training.batch_size == int(want.pop("--batch_size") or 0)
    assert recipe.training.epochs == (command.epochs or 50)
    assert ("--wandb" in command.ours) == ("--wandb" in want)
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
DEFORMABLE_RUNS = of("Deformable DETR")


def test_every_script_of_deformable_detr_has_its_line() -> None:
    shown = {re.findall(r"configs/(\w+)\.sh", command.theirs)[0] for command in DEFORMABLE_RUNS}
    assert shown == THEIR_CONFIGS.keys()
    assert len(of("Deformable DETR", "evaluation")) == 1


@pytest.mark.parametrize("command", DEFORMABLE_RUNS, ids=lambda command: command.theirs)
def test_our_line_means_the_script_of_deformable_detr(command: Command) -> None:
    recipe, config, processes = our_run(command.ours)
    number, script = re.findall(r"launch\.sh (\d+) \./configs/(\w+)\.sh", command.theirs)[0]
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


def test_our_lines_mean_the_scripts_of_dino() -> None:
    found = {}
    for command in of("DINO"):
        recipe, config, processes = our_run(command.ours)
        found[re.findall(r"scripts/(\w+)\.sh", command.theirs)[0]] = (
            recipe.model.name,
            processes,
            recipe.training.batch_size,
        )
        assert (recipe.training.epochs, recipe.schedule.drop, recipe.data.root) == (12, [11], "data/coco")
        # 1.0 in every script, whatever the configuration file says
        assert (config.denoising_box_noise, config.denoising_label_noise, config.denoising_queries) == (1.0, 0.5, 100)
        assert (recipe.optimizer.lr, recipe.optimizer.lr_backbone, recipe.optimizer.lr_sampling) == (1e-4, 1e-5, None)
        whole = processes * recipe.training.batch_size == recipe.optimizer.lr_batch_size
        assert whole or recipe.optimizer.lr_scaling == "none"
    assert found == THEIR_SCRIPTS
    (evaluation,) = of("DINO", "evaluation")
    assert "DINO_eval.sh" in evaluation.theirs


RELATION_FAMILIES = {"Relation-DETR": "relation_detr", "Salience-DETR": "salience_detr", "DAPE": "dape"}


@pytest.mark.parametrize("repository", RELATION_FAMILIES)
def test_our_lines_launch_what_theirs_launch(repository: str) -> None:
    """The same devices, and a recipe of the repository's own model; evaluation reads any checkpoint."""
    training, evaluation = of(repository), of(repository, "evaluation")
    assert training
    assert evaluation
    for command in [*training, *evaluation]:
        devices = re.findall(r"CUDA_VISIBLE_DEVICES=(\S+)", command.theirs)
        assert re.findall(r"CUDA_VISIBLE_DEVICES=(\S+)", command.ours) == devices
        # one device needs no launcher; without a number of processes accelerate takes all that are visible
        assert ("accelerate launch -m" in command.ours) == (devices != ["0"])
        trains = "main.py" in command.theirs or "train.py" in command.theirs
        assert (command.kind == "command") == ("detrkit train" in command.ours) == trains
        assert f"recipes/{RELATION_FAMILIES[repository]}/" in command.ours
        assert command.ours.endswith("--checkpoint X") == command.theirs.endswith("--checkpoint X")


def test_every_configuration_of_the_relation_repositories_has_its_recipe() -> None:
    names = {"resnet50": "r50", "resnet50_5scale": "r50_5scale", "focalnet_large_lrf_fl4": "focalnet_l"}
    names |= {"focalnet_large_lrf": "focalnet_l", "swin_l": "swin_l", "convnext_l": "convnext_l"}
    named = [(header, *pair) for header in HEADERS for pair in header.configurations]
    for header, repository, configuration in named:
        family, backbone, size = re.findall(r"^(\w+?_detr)_(\w+)_(\d+_\d+)$", configuration)[0]
        recipe, config, _ = our_run(header.train)
        assert family == RELATION_FAMILIES[repository]
        assert recipe.model.name == f"{family}_{names[backbone]}"
        sizes = (
            recipe.data.eval_short_side or config.eval_short_side,
            recipe.data.eval_max_side or config.eval_max_side,
        )
        assert f"{sizes[0]}_{sizes[1]}" == size
        settings = {"num_queries": 900, "num_feature_levels": 5 if "fl4" in backbone else 4, "size_divisor": 32}
        settings |= {"denoising_queries": 1000 if size == "1200_2000" else 100, "eval_resize": "float32_truncate"}
        for key, value in settings.items():
            assert getattr(config, key) == value, (header.name, key)
    assert {header.path for header, *_ in named if header.path.parent.name == "coco"} == {
        path
        for family in ("relation_detr", "salience_detr")
        for path in (ROOT / "recipes" / family / "coco").glob("*.yaml")
    }


RELATION_SETTINGS = table_rows(PAGE.split("### Settings")[1])


def test_settings_of_the_relation_repositories_exist() -> None:
    for _, ours in RELATION_SETTINGS:
        for code in re.findall(r"`([^`]*=[^`]*)`", ours):
            recipe = load_recipe("relation_detr/coco/relation_detr_r50_coco_12ep", code.split())
            for key, value in (word.split("=") for word in code.split()):
                assert recipe.flat()[key] == yaml.safe_load(value), key


FLAGS = table_rows(PAGE.split("### Single flags")[1].split("\n## ")[0])
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


DATA = {"COCO": "coco", "Cityscapes": "cityscapes", "SA-Det-100k": "sa_det_100k", "LVIS v1": "lvis"}
DATA |= {"205 images of blood cells": "blood_cells_det", "458 images of nuclei": "nuclei_inst"}
DATA |= {"40 aerial images": "aerial_sem", "LVIS v1 instances": "lvis"}
DATA |= {"10 photos of nuts": "nuts_inst", "21 photos of COCO": "coco_open_panoptic"}
DATA |= {f"COCO {task}": "coco" for task in ("instances", "panoptic")}
DATA |= {f"Cityscapes {task}": "cityscapes" for task in ("instances", "panoptic", "semantics")}


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.name)
def test_a_header_says_what_its_recipe_does(header: Header) -> None:
    """Data, epochs, batch and queries in the first line; a figure or why there is none; the recipe's own commands."""
    recipe, config, processes = our_run(header.train)
    first = header.path.read_text(encoding="utf-8").splitlines()[0]
    assert recipe.data.root == f"data/{DATA[header.data]}"
    assert [int(epochs) for epochs in re.findall(r"(\d+) epochs", first)] in ([], [recipe.training.epochs])
    assert re.findall(r"(\d+)x(\d+) images", first) in ([], [(str(processes), str(recipe.training.batch_size))])
    assert [int(number) for number in re.findall(r"(\d+) queries", first)] in ([], [config.num_queries])
    assert [float(part) for part in re.findall(r"(\d+) % of COCO", first)] in (
        [],
        [100 * (recipe.data.sample_rate or 1)],
    )
    assert bool(header.figures) + (header.no_figure is not None) + header.measured == 1
    assert header.train.endswith(f" recipes/{header.name}.yaml")
    assert header.evaluate == f"detrkit eval recipes/{header.name}.yaml --checkpoint X"


def in_paper(place: str) -> dict[str, Header]:
    """Recipes of the figures in one place of the DE-DETR paper, by file name."""
    return {
        header.path.stem: header
        for header in HEADERS
        for figure in header.figures
        if figure.source == PAPER and figure.detail.startswith(place)
    }


def test_every_figure_of_the_de_detr_paper_has_its_recipe() -> None:
    methods = ("", "de_", "dela_")
    baselines = ("detr", "conditional_detr")
    table_2 = {f"{method}{base}_r50_cityscapes_50ep" for method in methods for base in baselines}
    table_2 -= {"detr_r50_cityscapes_50ep"}
    assert in_paper("Table 2").keys() == table_2 | {"detr_r50_cityscapes_300ep", "deformable_detr_r50_cityscapes_50ep"}
    table_3 = {"la_conditional_detr_r50_cityscapes_50ep", "de_conditional_detr_r50_single_scale_cityscapes_50ep"}
    assert in_paper("Table 3").keys() == table_3
    assert in_paper("Figure 4").keys() == {
        f"{method}{base}_r50_coco_{percent}pct_50ep"
        for method in methods
        for base in baselines
        for percent in (1, 2, 5, 10)
    }
