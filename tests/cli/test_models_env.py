"""``detrkit models`` and ``detrkit env``."""

from __future__ import annotations

import json

import pytest

import detrkit
from detrkit.cli.main import run
from detrkit.weights.find import embedded_names


def test_models_lists_every_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["models"]) == 0
    out = capsys.readouterr().out
    for name in detrkit.list_models():
        assert name in out


@pytest.mark.parametrize("pattern", ["dela", "dela_*", "DELA", "lade"])
def test_models_filter_as_json(capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    code = run(["models", pattern, "--json"])
    captured = capsys.readouterr()
    if pattern == "lade":
        assert code == 2
        assert captured.out == ""
        assert "no model matches 'lade'" in captured.err
        return
    assert code == 0
    rows = json.loads(captured.out)
    assert [row["name"] for row in rows] == detrkit.list_models("*dela*")
    trained = {row["name"] for row in rows if row["trained"]}
    assert trained == {name for name in embedded_names() if "dela" in name}
    assert all(row["summary"] and row["family"] for row in rows)


def test_env_names_versions_and_devices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("COLUMNS", "160")
    assert run(["env"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}".split("+")[0] in out
    assert run(["env", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["detrkit"] == detrkit.__version__
    assert values["cuda build"] == (torch.version.cuda or "none")
    assert bool(values["gpus"]) >= torch.cuda.is_available()
    assert run(["env", "--torch", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["devices"][0].startswith("cpu (")
    assert seen["device auto"] in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("forced", "interpret", "deformable", "relation"),
    [
        ("", "0", "cpu", "reference"),
        ("reference", "0", "reference", "reference"),
        ("cpu", "0", "cpu", "reference"),
        ("triton", "1", "triton", "triton"),
        ("triton", "0", "triton is impossible: Triton's kernels run on a CUDA device, not on cpu", None),
    ],
)
def test_env_names_the_kernels(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    forced: str,
    interpret: str,
    deformable: str,
    relation: str | None,
) -> None:
    monkeypatch.setenv("DETRKIT_BACKEND", forced)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr("detrkit.cli.env._gpus", list)
    assert run(["env", "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert kernels["ms_deform_attn"].startswith(deformable)
    assert relation is None or kernels["relation_attention"] == relation
    assert kernels.get("forced by") == ("DETRKIT_BACKEND" if forced else None)


def test_env_on_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detrkit.cli.env._gpus", lambda: ["a GPU"])
    monkeypatch.setattr("detrkit.cli.env._cuda_build", lambda: "13.0")
    for missing, name in ((None, "triton"), ("it needs a C compiler", "reference")):
        monkeypatch.setattr("detrkit.backends.missing_for_triton", lambda missing=missing: missing)
        assert run(["env", "--json"]) == 0
        assert set(json.loads(capsys.readouterr().out)["kernels"].values()) == {name}


def test_env_refuses_an_unknown_backend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETRKIT_BACKEND", "onnx")
    assert run(["env"]) == 2
    assert "DETRKIT_BACKEND=onnx: there is no such backend. Valid: cpu, reference, triton." in capsys.readouterr().err
