"""Files for several processes can be used as they are: accelerate reads them, and the launchers take the options."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from detrkit.config import load_recipe
from detrkit.training.optimizer import lr_factor
from tests.workplace import ROOT

LAUNCH = ROOT / "docs" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
WORDS = ["train", "recipes/a b.yaml", "lr=1e-4"]
PROGRAMS = ("torchrun", "accelerate", "srun")


@pytest.mark.parametrize(("name", "machines", "processes"), [("one_node", 1, 8), ("two_nodes", 2, 8)])
def test_accelerate_reads_the_files(name: str, machines: int, processes: int) -> None:
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # refuses keys that it does not know
    assert isinstance(config, ClusterConfig)
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.distributed_type == "MULTI_GPU"
    assert not config.use_cpu


def started(script: Path, folder: Path, environment: dict[str, str]) -> list[str]:
    """What a script starts on a node, word by word, with launchers that only say what they were told."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text("#!/bin/sh\nprintf 'node7\\nnode8\\n'\n")
    (programs / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    for name in ("torchrun", "accelerate"):
        (programs / name).write_text(f"#!/bin/sh\nprintf '%s\\0' {name} \"$@\"\n")
    for path in programs.iterdir():
        path.chmod(0o755)
    said = subprocess.run(
        ["bash", str(script), *WORDS],
        env={"PATH": f"{programs}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.removesuffix("\0").split("\0")


SLURM = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "17", "SLURM_NODEID": "1"}


@pytest.mark.parametrize(
    ("name", "environment", "head"),
    [("torchrun_two_nodes", {"HEAD": "10.0.0.1"}, "10.0.0.1"), ("slurm_two_nodes", SLURM, "node7")],
)
def test_torchrun_takes_the_options(tmp_path: Path, name: str, environment: dict[str, str], head: str) -> None:
    program, *words = started(LAUNCH / f"{name}.sh", tmp_path, environment)
    assert program == "torchrun"
    options = get_args_parser().parse_args(words)
    assert (options.nnodes, options.nproc_per_node) == ("2", "4")
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", f"{head}:29500")
    assert options.module
    assert [options.training_script, *options.training_script_args] == ["detrkit", *WORDS]


def test_accelerate_takes_the_options(tmp_path: Path) -> None:
    program, command, *words = started(LAUNCH / "slurm_two_nodes_accelerate.sh", tmp_path, SLURM)
    assert (program, command) == ("accelerate", "launch")
    options = launch_command_parser().parse_args(words)
    assert (options.num_machines, options.num_processes, options.machine_rank) == (2, 8, 1)
    assert (options.main_process_ip, options.main_process_port) == ("node7", 29500)
    assert options.module
    assert [options.training_script, *options.training_script_args] == ["detrkit", *WORDS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_for_two_nodes(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    if script.stem.startswith("slurm"):
        assert "#SBATCH --nodes=2\n" in text
        assert text.index("#SBATCH --output") < text.index("set -euo"), "SLURM reads no options after the first command"


def test_the_table_says_what_a_run_does() -> None:
    """Batch, rate and steps of one recipe of each kind, worked out by hand."""
    page = (ROOT / "docs" / "many_gpus.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| [`")}
    name = "dape/instance_segmentation/cityscapes/mask_dape_r50_cityscapes_90k"
    optimizer = load_recipe(ROOT / "recipes" / f"{name}.yaml").optimizer
    assert lr_factor(optimizer, 32) == 2, "this one says lr_scaling: linear"
    expected = ["8 at 5e-05, 180,000", "**16 at 0.0001, 90,000**", "32 at 0.0002, 45,000", "64 at 0.0004, 22,500"]
    by_root = ["4 at 7.07e-05", "**8 at 0.0001**", "16 at 0.000141", "32 at 0.0002"]
    for key, cells in ((name, expected), ("de_detr/cityscapes/de_detr_r50_cityscapes_50ep", by_root)):
        assert [cell.strip() for cell in rows[key].split("|")[-5:-1]] == cells
