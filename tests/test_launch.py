"""The train and test lines of DAPE's README under ``accelerate launch`` with two processes, in miniature."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.training.loggers import read_log
from tests.weights.server import Served, Server, serving
from tests.workplace import ROOT, SMALL_RUN, make_data

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two processes")]

RECIPE = "recipes/dape/instance_segmentation/coco/mask_dape_r50_coco_1x.yaml"
SHALLOW = {"model.backbone": "test_resnet", "model.encoder_layers": 1, "model.decoder_layers": 2}


def launch(here: Path, words: list[str], settings: Mapping[str, Any]) -> str:
    """What a line says with two processes; ``--multi_gpu`` is what makes accelerate start several on CPUs."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    environment["XDG_CACHE_HOME"] = str(here / "cache")
    said = subprocess.run(
        [*launcher, "-m", "detrkit", *words, *overrides],
        cwd=here,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-3000:]
    return said.stdout


def test_train_and_test_lines_with_two_processes(tmp_path: Path) -> None:
    """Training writes one run; evaluation loads the checkpoint from a URL and has mask AP and box AP in one table."""
    make_data(tmp_path / "data")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    small = SMALL_RUN | SHALLOW | {"training.iterations": 2, "training.batch_size": 1, "logging.every": 1}
    launch(tmp_path, ["train", RECIPE, "--output", "run"], small)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in rows if row["event"] == "train"] == [1, 2]
    assert [row["event"] for row in rows].count("start") == 1
    (trained,) = [row for row in rows if row["event"] == "eval"]

    checkpoint = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    sizes = {key: value for key, value in SMALL_RUN.items() if key.startswith("data.eval_")}
    with serving() as server:
        assert isinstance(server, Server)
        server.files["mask_dape.safetensors"] = Served(checkpoint)
        words = ["eval", RECIPE, "--checkpoint", server.url("mask_dape.safetensors"), "--workers", "0"]
        table = launch(tmp_path, words, sizes)
        asked = [path for path, _ in server.requests]
        printed = launch(tmp_path, [*words, "--json"], sizes)
    assert len(asked) == 1, "one process downloads for both"
    lines = table.splitlines()
    masks = next(number for number, line in enumerate(lines) if "│ masks │" in line)
    assert "│ AP50 │" in " ".join(lines[masks - 2].replace("┃", "│").split())
    assert "│ boxes │" in lines[masks + 1], "mask AP and box AP in one table"
    assert table.count(server.url("mask_dape.safetensors")) == 1, "one process prints"
    score = json.loads(printed)
    assert score["iou_type"] == "segm"
    for name in ("AP", "AP50", "box_AP"):
        assert score["metrics"][name] == pytest.approx(trained[name])


def torchrun(here: Path, script: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A run of two steps, started by an agent of torchrun."""
    small = SMALL_RUN | SHALLOW | {"training.iterations": 2, "training.batch_size": 1, "logging.every": 1}
    words = ["train", RECIPE, "--output", "run", *(f"{key}={json.dumps(value)}" for key, value in small.items())]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        [*script, *words], cwd=here, env=os.environ | own | environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("nodes", [1, 2])
def test_one_node_of_two_processes_and_two_nodes_of_one_train_alike(tmp_path: Path, nodes: int) -> None:
    """The script for two nodes, with both agents on this machine, and torchrun on one."""
    make_data(tmp_path / "data")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    if nodes == 1:
        script = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "detrkit"]
        agents = [torchrun(tmp_path, script, {})]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        script = ["bash", str(ROOT / "docs" / "launch" / "torchrun_two_nodes.sh")]
        environment = {"HEAD": "127.0.0.1", "PORT": port, "NODES": "2", "GPUS": "1", "RUN": tmp_path.name}
        agents = [torchrun(tmp_path, script, environment) for _ in range(nodes)]
    said = [agent.communicate(timeout=600)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * nodes, said[0][-3000:]
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["event"] for row in rows].count("start") == 1, "one process writes"
    assert [row["step"] for row in rows if row["event"] == "train"] == [1, 2]
    state = torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)
    assert state["processes"] == 2
