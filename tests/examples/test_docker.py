"""The Dockerfiles: no root, a health check, a pinned base; the steps of the small one run in a fresh environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.examples.test_serve import encoded
from tests.runtime.planted_files import planted_info, planted_onnx
from tests.scripts import imported_script

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


def rehearsing() -> Any:
    with imported_script("rehearse", folder="docker") as module:
        return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_dockerfiles(path: Path) -> None:
    steps = list(rehearsing().instructions(path))
    words = [word for word, _ in steps]
    base = next(rest.partition("=")[2] for word, rest in steps if word == "ARG" and rest.startswith("BASE="))
    assert ":" in base
    assert not base.endswith(":latest")
    assert ("FROM", "${BASE}") in steps, "so that a digest can be given"
    users = [rest for word, rest in steps if word == "USER"]
    assert users[-1] not in ("root", "0")
    assert words.index("USER") < max(index for index, word in enumerate(words) if word in ("CMD", "ENTRYPOINT"))
    assert "HEALTHCHECK" in words
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for word, rest in steps:
        for source in rest.split()[:-1] if word == "COPY" else ():
            assert (ROOT / source).exists(), f"COPY {source}: no such path"
            assert f"!{source}" in ignored, f"COPY {source}: left out by .dockerignore"


def test_there_are_two() -> None:
    assert [path.suffix for path in FILES] == [".cpu", ".cuda"]


@pytest.mark.slow  # installs from the package index
def test_the_steps_of_the_server(tmp_path: Path) -> None:
    """Install, start as the image would, ask for health as the image would, predict."""
    done = rehearsing().rehearse(ROOT / "docker" / "Dockerfile.cpu", tmp_path / "root")
    model = planted_onnx(tmp_path / "model.onnx", planted_info())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**done.environment(), "DETRKIT_MODEL": str(model), "NO_PROXY": "127.0.0.1"}
    python = str(done.root / "venv" / "bin" / "python")
    installed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "detrkit-runtime" in installed
    assert "torch" not in installed
    words = [python, *(word.replace("8000", port) for word in done.start[1:])]
    server = subprocess.Popen(words, cwd=done.folder, env=environment)
    try:
        health = [python, *(word.replace("8000", port) for word in done.health[1:])]
        for _ in range(60):
            if subprocess.run(health, env=environment, capture_output=True, check=False).returncode == 0:
                break
            assert server.poll() is None, "the server has ended"
            time.sleep(1)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict?threshold=0.4", data=encoded())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            assert len(json.load(answer)["objects"]) > 3
    finally:
        server.terminate()
        server.wait()
    assert os.path.isdir(done.folder)
