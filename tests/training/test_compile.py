"""``training.compile``: the same run, with copies, checkpoints and a stop in between."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from detrkit.errors import RecipeError
from detrkit.training import train
from detrkit.training.trainer import Trainer
from tests.training.fakes import last_state
from tests.training.test_end_to_end import MODEL, make_coco, recipe


@pytest.mark.slow
def test_a_compiled_run_is_the_same_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    torch._dynamo.reset()
    coco, graphs = make_coco(tmp_path / "coco"), []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    original, compile_it = Trainer.train_step, torch.compile

    def without_code(network: Any, **options: Any) -> Any:
        return compile_it(network, backend=backend, fullgraph=True, dynamic=True, **options)

    def stopping(self: Trainer, group: list[Any]) -> None:
        original(self, group)
        if self.step == 2:
            raise SystemExit

    def settings(name: str, **training: Any) -> dict[str, Any]:
        made = recipe(coco, tmp_path / name, epochs=1, checkpoint_every=1, evaluate_every=0, **training)
        made["model"] = MODEL | {"encoder_layers": 1, "decoder_layers": 2, "backbone": "test_resnet"}
        made["logging"] |= {"estimate": False}
        return made

    train(settings("plain"))
    with mock.patch("torch.compile", without_code):
        with mock.patch.object(Trainer, "train_step", stopping), pytest.raises(SystemExit):
            train(settings("compiled", compile=True))
        train(tmp_path / "compiled", resume=True)
    assert graphs
    plain, compiled = last_state(tmp_path / "plain"), last_state(tmp_path / "compiled")
    assert plain["position"] == compiled["position"]
    for expected, found in ((plain["model"], compiled["model"]), (plain["ema"]["model"], compiled["ema"]["model"])):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_missing_compiler_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RecipeError, match=r"training\.compile = true .* C\+\+ .* CXX"):
        train(recipe(tmp_path / "nothing", tmp_path / "run", compile=True))
