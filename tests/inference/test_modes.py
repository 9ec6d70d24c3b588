"""One model, several users: its mode, its precision, and prediction from several threads."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.inference.modes import _uses, evaluating
from detrkit.inference.predictor import Predictor
from detrkit.models import Detector, create_model
from tests.inference.color_detector import ColorDetector, picture
from tests.small import small_model

PICTURE = picture((96, 64), (0, (10, 20, 40, 50)), (2, (50, 8, 90, 28)))


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def modes(model: Detector) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_a_model_in_memory_is_left_in_its_mode() -> None:
    model = ColorDetector()
    model.train()
    model.dropout.eval()
    before = modes(model)
    predictor = Predictor(model, device="cpu")
    assert modes(model) == before
    assert len(predictor.predict(PICTURE)) == 2  # the colour detector asserts that it evaluates
    assert modes(model) == before


def test_the_mode_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ColorDetector().train()
    predictor = Predictor(model, device="cpu")
    monkeypatch.setattr(model, "detect", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predictor.predict(PICTURE)
    assert model.training


def test_dropout_is_off_whatever_mode_the_model_is_in() -> None:
    model = create_model(
        "detr_lite0", num_classes=3, dropout=0.5, hidden_dim=64, num_heads=2, encoder_layers=1, decoder_layers=1
    )
    predictor = Predictor(model.train(), device="cpu", threshold=0.0)
    first = predictor.predict(PICTURE)
    model.train()
    assert np.array_equal(first.scores, predictor.predict(PICTURE).scores)


def test_the_mode_comes_back_when_the_last_thread_leaves() -> None:
    model = torch.nn.Dropout()
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with evaluating(model):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    with evaluating(model):
        assert not model.training
    assert not model.training, "another thread still predicts"
    leave.set()
    thread.join()
    assert model.training


def test_models_are_not_kept_alive() -> None:
    model = torch.nn.Dropout()
    with evaluating(model):
        pass
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not [key for key in _uses if key is None]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["detr_lite0", "dape_lite0"])
def test_models_in_another_precision_are_copied_to_float32(name: str, kind: torch.dtype) -> None:
    model = small_model(name).to(kind)
    predictor = Predictor(model, device="cpu", threshold=0.0)
    found = predictor.predict(PICTURE)
    assert len(found) > 0
    assert next(model.parameters()).dtype == kind, "the model of the caller stays as it is"
    plain = small_model(name).to(kind).float()
    assert np.array_equal(found.scores, Predictor(plain, device="cpu", threshold=0.0).predict(PICTURE).scores)


@pytest.mark.parametrize("name", ["dape_lite0", "de_detr_lite0", "mask_dape_lite0", "salience_detr_lite0"])
def test_eight_threads_get_what_one_gets(name: str) -> None:
    """Images of unlike size at once: a forward pass keeps nothing on the model."""
    model = small_model(name, mask_backbone_padding=True)
    predictor = Predictor(model, device="cpu", threshold=0.0)
    images = [noise(*size, seed=k) for k, size in enumerate([(64, 48), (40, 96), (64, 64), (90, 31)])] * 4
    alone = [predictor.predict(image, task="det") for image in images[:4]] * 4
    model.train()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: predictor.predict(image, task="det"), images))
    for a, b in zip(alone, together, strict=True):
        assert a.image_size == b.image_size
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
    assert model.training
