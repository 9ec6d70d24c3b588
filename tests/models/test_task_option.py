"""Which models take which task."""

from __future__ import annotations

import pytest

from detrkit.models import entry, list_models, model_config


@pytest.mark.parametrize("name", list_models())
def test_every_model_takes_its_own_task_and_says_which_others(name: str) -> None:
    own = model_config(name).architecture.task
    assert model_config(name, task=own).architecture.task == own
    if entry(name).mask_branch is not None:
        for task in ("det", "inst", "sem", "pan"):
            config = model_config(name, task=task)
            assert config.architecture.finer_maps == (task != "det" and config.architecture.backbone_levels < 4)
    else:
        other = "inst" if own == "det" else "det"
        with pytest.raises(ValueError, match=f"model '{name}' has .*: task cannot be '{other}'"):
            model_config(name, task=other)
    with pytest.raises(ValueError, match="task"):
        model_config(name, task="boxes")


def test_a_task_with_masks_changes_the_weights_of_the_class_unless_they_are_given() -> None:
    assert model_config("dino_lite0").objective.loss_class == 1.0
    assert model_config("dino_lite0", task="inst").objective.loss_class == 4.0
    assert model_config("dino_lite0", task="inst", loss_class=2.0).objective.loss_class == 2.0
    assert model_config("detr_r50_panoptic").objective.loss_class == 1.0, "DETR's own head keeps DETR's weights"
