"""The predictor: kinds of input, batches, scores, weights and devices."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.errors import CheckpointError, DataError, DetrkitError, RunError
from detrkit.inference.device import autocast
from detrkit.inference.predictor import Predictor
from detrkit.structures import Detections
from tests.inference.color_detector import CATEGORIES, ColorDetector, picture

PICTURE = picture((96, 64), (0, (10, 20, 40, 50)), (2, (50, 8, 90, 28)))


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(ColorDetector(), device="cpu")


def check(found: Detections) -> None:
    """Check that the detections are the two rectangles of PICTURE."""
    assert found.image_size == (64, 96)
    assert found.boxes.dtype == np.float32
    assert found.scores.dtype == np.float32
    order = np.argsort(found.labels)
    np.testing.assert_allclose(found.boxes[order], [[10, 20, 40, 50], [50, 8, 90, 28]], atol=1e-3)
    assert found.labels[order].tolist() == [0, 2]
    assert found.category_ids[order].tolist() == [3, 9]
    assert [found.names[index] for index in order] == ["red", "blue"]


# --- kinds of input ---------------------------------------------------------------------------------------------------


def test_path_text_bytes_pillow_and_array_give_the_same(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    PICTURE.save(path)
    for source in (path, str(path), path.read_bytes(), PICTURE, np.asarray(PICTURE)):
        check(predictor.predict(source))
    assert predictor.predict(path).path == path
    assert predictor.predict(str(path)).path == path
    assert predictor.predict(PICTURE).path is None


def test_a_gray_array_fills_every_channel(predictor: Predictor) -> None:
    gray = np.asarray(PICTURE)[:, :, 0]
    found = predictor.predict(gray, threshold=0.5)
    assert sorted(found.labels.tolist()) == [0, 1, 2]
    np.testing.assert_allclose(found.boxes, [[10, 20, 40, 50]] * 3, atol=1e-3)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a local web server and the folder that it serves."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def test_url(predictor: Predictor, web: tuple[str, Path]) -> None:
    address, folder = web
    PICTURE.save(folder / "a.png")
    check(predictor.predict(f"{address}/a.png"))
    with pytest.raises(DataError, match=r"none\.png: the image cannot be fetched: File not found"):
        predictor.predict(f"{address}/none.png")
    (folder / "text.png").write_text("no image")
    with pytest.raises(DataError):
        predictor.predict(f"{address}/text.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_in_pixels_of_the_upright_image(predictor: Predictor, orientation: int) -> None:
    """The same scene is stored with every EXIF orientation."""
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = PICTURE
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, format="PNG", exif=exif)
    check(predictor.predict(buffer.getvalue()))


def test_a_larger_image_is_resized_and_boxes_are_in_its_pixels(predictor: Predictor) -> None:
    large = picture((400, 300), (1, (100, 60, 300, 180)))
    found = predictor.predict(large)
    assert predictor.model.calls[-1] == (1, 3, 64, 85)  # type: ignore[attr-defined]  # of the ColorDetector
    assert found.image_size == (300, 400)
    np.testing.assert_allclose(found.boxes, [[100, 60, 300, 180]], atol=400 / 85)


def test_boxes_are_clipped_to_the_image(predictor: Predictor) -> None:
    predictor.model.detect = lambda images, mask, targets: detrkit.Predictions(  # type: ignore[method-assign]  # stand-in
        torch.full((1, 1, 1, 3), 3.0), torch.tensor([[[[0.1, 0.9, 0.5, 0.5]]]])
    )
    found = predictor.predict(Image.new("RGB", (100, 50)), threshold=0.0)
    np.testing.assert_allclose(found.boxes, [[0, 32.5, 35, 50]] * len(found), atol=1e-4)


# --- lists and batches ------------------------------------------------------------------------------------------------


def test_one_gives_one_and_a_list_gives_a_list(predictor: Predictor) -> None:
    assert isinstance(predictor.predict(PICTURE), Detections)
    assert isinstance(predictor.predict([PICTURE]), list)
    assert len(predictor.predict((PICTURE, PICTURE))) == 2
    assert predictor.predict([]) == []


def test_batches_of_different_sizes_equal_single_images() -> None:
    pictures = [
        picture((96, 64), (0, (10, 20, 40, 50))),
        picture((64, 80), (1, (5, 5, 30, 70))),
        picture((128, 64), (2, (100, 0, 128, 64))),
    ]
    single = Predictor(ColorDetector(), device="cpu").predict(pictures)
    model = ColorDetector()
    batched = Predictor(model, device="cpu", batch_size=2).predict(pictures)
    assert model.calls == [(2, 3, 80, 96), (1, 3, 64, 128)]
    for a, b in zip(single, batched, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
        assert a.labels.tolist() == b.labels.tolist()


# --- scores -----------------------------------------------------------------------------------------------------------


def test_threshold_is_inclusive_and_zero_keeps_all_top_k(predictor: Predictor) -> None:
    everything = predictor.predict(PICTURE, threshold=0.0)
    assert len(everything) == predictor.config.top_k == 5
    assert (np.diff(everything.scores) <= 0).all()
    for score in everything.scores:
        kept = predictor.predict(PICTURE, threshold=float(score))
        assert kept.scores.min() == score
    assert len(predictor.predict(PICTURE, threshold=1.0)) == 0


def test_threshold_of_a_score_that_is_not_exact_in_float32() -> None:
    """0.7 is 0.699999988 in float32 and must still pass a threshold of 0.7."""
    model = ColorDetector()
    predictor = Predictor(model, device="cpu")
    model.detect = lambda images, mask, targets: detrkit.Predictions(  # type: ignore[method-assign]  # stand-in
        torch.logit(torch.full((1, 1, 1, 3), 0.7, dtype=torch.float64)).float(), torch.full((1, 1, 1, 4), 0.5)
    )
    assert float(np.float32(0.7)) < 0.7
    assert len(predictor.predict(PICTURE, threshold=0.7)) == 3


def test_default_threshold() -> None:
    dim = picture((96, 64), (0, (10, 20, 40, 50)), brightness=140)  # score 0.55
    assert len(Predictor(ColorDetector(), device="cpu").predict(dim)) == 1
    assert len(Predictor(ColorDetector(), device="cpu", threshold=0.6).predict(dim)) == 0


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_threshold_out_of_range(predictor: Predictor, threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        predictor.predict(PICTURE, threshold=threshold)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Predictor(ColorDetector(), device="cpu", threshold=threshold)


class TwinDetector(ColorDetector):
    """Two boxes on the same object."""

    def detect(self, images, padding_mask, targets):  # type: ignore[no-untyped-def]  # as ColorDetector
        found = super().detect(images, padding_mask, targets)
        found.boxes[..., 3, :] = found.boxes[..., 0, :]
        found.logits[..., 3, 0] = found.logits[..., 0, 0] - 1
        return found


def test_nms_of_the_configuration_can_be_overridden() -> None:
    image = picture((96, 64), (0, (10, 20, 40, 50)))

    def count(predictor: Predictor) -> int:
        return len(predictor.predict(image, threshold=0.5))

    assert count(Predictor(TwinDetector(), device="cpu")) == 2
    assert count(Predictor(TwinDetector(), device="cpu", nms=0.7)) == 1
    assert count(Predictor(TwinDetector(nms=0.7), device="cpu")) == 1
    assert count(Predictor(TwinDetector(nms=0.7), device="cpu", nms=1.0)) == 2
    soft = Predictor(TwinDetector(top_k=12), device="cpu", nms=0.7, nms_decay=0.01).predict(image, threshold=0.0)
    assert soft.scores[0] > 0.9
    assert ((soft.scores > 0.005) & (soft.scores < 0.01)).any()  # the twin, with its score times 0.01
    model = TwinDetector(nms=0.7, nms_decay=0.01)
    assert Predictor(model, device="cpu").config.nms_decay == 0.01
    assert Predictor(model, device="cpu", nms=0.5).config.nms_decay is None
    assert Predictor(TwinDetector(nms=0.5), device="cpu", nms_decay=0.1).config.nms == 0.5
    assert Predictor(TwinDetector(), device="cpu", nms_decay=0.1).config.nms == 0.7
    assert model.config.nms == 0.7


def test_a_model_without_class_names_has_numbered_classes() -> None:
    found = Predictor(ColorDetector(categories=None), device="cpu").predict(PICTURE)
    assert sorted(found.names) == ["class 0", "class 2"]


def test_official_coco_models_have_the_coco_class_names(shared: Path) -> None:
    fixture = shared / "data" / "eval_fixtures" / "coco_instances" / "instances_val2014_100.json"
    expected = {row["id"]: row["name"] for row in json.loads(fixture.read_text())["categories"]}
    model = ColorDetector(categories=None, num_classes=91, top_k=300, num_queries=5)
    predictor = Predictor(model, device="cpu")
    assert {category.id: category.name for category in predictor.categories.named} == expected
    everything = predictor.predict(PICTURE, threshold=0.0)
    assert (everything.category_ids == everything.labels).all()
    assert set(everything.category_ids[everything.scores > 0].tolist()) <= expected.keys(), "gaps are never returned"


def test_an_unreadable_image_is_named_in_the_error(predictor: Predictor, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 nonsense")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        predictor.predict([PICTURE, bad])
    with pytest.raises(DataError, match=r"none\.jpg: no such image file"):
        predictor.predict(tmp_path / "none.jpg")


# --- weights and devices ----------------------------------------------------------------------------------------------


def test_checkpoint_file_and_run_folder(tmp_path: Path) -> None:
    model = detrkit.create_model("dela_detr_lite0", num_classes=3, eval_short_side=64)
    model.categories = CATEGORIES
    path = tmp_path / "run" / "best" / "model.safetensors"
    detrkit.save(model, path)
    one = Predictor(path, device="cpu").predict(PICTURE, threshold=0.0)
    two = Predictor(tmp_path / "run", device="cpu").predict(PICTURE, threshold=0.0)
    assert len(one) == min(model.config.top_k, model.config.num_queries * 3)
    assert one.boxes.tobytes() == two.boxes.tobytes()
    assert set(one.names) <= {"red", "green", "blue"}
    assert (one.boxes[:, :2] >= 0).all()
    assert (one.boxes[:, 2:] <= [96, 64]).all()
    assert (np.diff(one.scores) <= 0).all()


def test_official_checkpoints_are_recognised(tmp_path: Path) -> None:
    sizes = {"hidden_dim": 64, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 64}
    model = detrkit.create_model("conditional_detr_lite0", num_classes=91, num_queries=12, **sizes).eval()
    path = tmp_path / "official.pth"
    torch.save({"model": detrkit.to_official(model)}, path)
    with pytest.warns(UserWarning, match=r"official\.pth: num_heads=2 is assumed"):
        predictor = Predictor(path, device="cpu")
    assert predictor.categories.names[1] == "person"
    one, two = predictor.predict(PICTURE, threshold=0.0), Predictor(model, device="cpu").predict(PICTURE, threshold=0.0)
    assert one.boxes.tobytes() == two.boxes.tobytes()
    path.write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        Predictor(path)


def test_devices() -> None:
    assert str(Predictor(ColorDetector(), device=None).device) in ("cpu", "cuda", "mps")
    with pytest.raises(DetrkitError, match="there is no device 'gpu'"):
        Predictor(ColorDetector(), device="gpu")
    with pytest.raises(DetrkitError, match="is not there") as stop:
        Predictor(ColorDetector(), device="cuda:99")
    assert stop.value.exit_code == 2
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Predictor(ColorDetector(), device="cpu", batch_size=0)


def test_half_precision_runs_on_the_cpu() -> None:
    found = Predictor(ColorDetector(), device="cpu", precision="bf16").predict(PICTURE)
    check(found)


# --- arrays, folders, NaN ---------------------------------------------------------------------------------------------


def test_the_order_of_channels_is_stated_for_the_predictor_or_for_a_call() -> None:
    model = ColorDetector()
    bgr = np.asarray(PICTURE)[..., ::-1]
    check(Predictor(model, device="cpu", channels="bgr").predict(bgr))
    check(Predictor(model, device="cpu").predict(bgr, channels="bgr"))
    check(Predictor(model, device="cpu", channels="bgr").predict(np.asarray(PICTURE), channels="rgb"))
    answers = Predictor(model, device="cpu").answers([bgr, PICTURE], channels="bgr")
    for found in answers:
        detections = found["det"]
        assert isinstance(detections, Detections)
        check(detections)
    swapped = Predictor(model, device="cpu").predict(bgr)
    assert sorted(swapped.labels.tolist()) == [0, 2]
    np.testing.assert_allclose(swapped.boxes[swapped.labels == 2], [[10, 20, 40, 50]], atol=1e-3)
    unknown: Any = "BGR"
    for use in (lambda: Predictor(model, channels=unknown), lambda: Predictor(model).predict(bgr, channels=unknown)):
        with pytest.raises(ValueError, match="channels is 'rgb' or 'bgr' "):
            use()


def test_tensors(predictor: Predictor) -> None:
    tensor = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)
    for source in (tensor, tensor / 255, tensor.long()):
        check(predictor.predict(source))
        check(predictor.predict([source])[0])


def test_a_folder_says_how_to_predict_it(predictor: Predictor, tmp_path: Path) -> None:
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(
            DataError, match="is a folder, not an image; pass the list of its files, or use detrkit pre"
        ):
            predictor.predict(folder)


def test_empty_texts_are_neither_images_nor_checkpoints(predictor: Predictor) -> None:
    with pytest.raises(DataError, match="an empty text is not an image"):
        predictor.predict("")
    with pytest.raises(CheckpointError, match="an empty text names no checkpoint"):
        Predictor("")


@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_nan_is_an_error_not_an_empty_image(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NaN every comparison with a threshold is false, and nothing seems to be there."""
    model = ColorDetector()
    detect = model.detect

    def broken(*given: Any) -> Any:
        found = detect(*given)
        getattr(found, where)[..., 0, 0] = float("nan")
        return found

    monkeypatch.setattr(model, "detect", broken)
    with pytest.raises(RunError, match="the model predicts NaN: its weights are damaged"):
        Predictor(model, device="cpu").predict(PICTURE)
    with pytest.raises(RunError, match="the model predicts NaN"):
        Predictor(model, device="cpu").answers([PICTURE])


def test_images_over_the_limit_of_pixels(predictor: Predictor) -> None:
    limited = Predictor(ColorDetector(), device="cpu", max_pixels=96 * 64)
    buffer = io.BytesIO()
    PICTURE.resize((97, 64)).save(buffer, "PNG")
    check(limited.predict(PICTURE))
    with pytest.raises(DataError, match="are more than --max-pixels 6144"):
        limited.predict(buffer.getvalue())


# --- classes, number, views, streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classification", ["focal", "softmax"])
@pytest.mark.parametrize("nms", [None, 0.5])
def test_chosen_classes_are_a_part_of_all(classification: str, nms: float | None) -> None:
    """With room for all, the result is that of all classes without the others; top-k counts the chosen alone."""

    class Random(ColorDetector):
        def detect(self, images: Any, padding_mask: Any, targets: Any) -> Any:
            found = super().detect(images, padding_mask, targets)
            generator = torch.Generator().manual_seed(1)
            extra = int(classification == "softmax")
            logits = torch.randn(1, len(images), 40, 3 + extra, generator=generator)
            centres = torch.rand(1, len(images), 40, 4, generator=generator) * 0.2 + 0.4
            return type(found)(logits, centres)

    model = Random(classification=classification, top_k=200)
    everything = Predictor(model, device="cpu", threshold=0.0, nms=nms)
    found = everything.predict(PICTURE)
    assert len(set(found.labels.tolist())) == 3
    for classes, labels in (("blue", [2]), (["red", 9], [0, 2]), ("5,blue", [1, 2]), ([3], [0])):
        part = everything.predict(PICTURE, classes=classes)
        wanted = found[np.isin(found.labels, labels)]
        assert part.to_dict() == wanted.to_dict()
        assert Predictor(model, device="cpu", threshold=0.0, nms=nms, classes=classes).predict(
            PICTURE, max_detections=4
        ).to_dict() == (wanted[:4].to_dict())
    few = Predictor(Random(classification=classification, top_k=3), device="cpu", threshold=0.0, nms=nms)
    assert len(few.predict(PICTURE, classes="red")) == 3
    assert len(few.predict(PICTURE, max_detections=7)) == 7
    assert few.predict(PICTURE, max_detections=7).to_dict() == found[:7].to_dict()


def test_unusable_choices(predictor: Predictor) -> None:
    with pytest.raises(DataError, match=r"class 'bleu': there is no such name or id\. Did you mean 'blue'"):
        predictor.predict(PICTURE, classes=["bleu"])
    with pytest.raises(DataError, match="class '4': there is no such name or id; ids go from 3 to 9"):
        Predictor(ColorDetector(), device="cpu", classes=[4])
    with pytest.raises(DataError, match="none is named"):
        predictor.predict(PICTURE, classes=[])
    with pytest.raises(ValueError, match="max_detections must be at least 1"):
        predictor.predict(PICTURE, max_detections=0)
    with pytest.raises(TypeError, match=r"no option 'clases'\. Did you mean 'classes'"):
        predictor.predict(PICTURE, **{"clases": "red"})
    with pytest.raises(TypeError, match=r"no option 'treshold'\. Did you mean 'threshold'"):
        predictor.predict(PICTURE, **{"treshold": 0.5})


def test_folders_and_patterns_give_lists(predictor: Predictor, tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "sub/c.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PICTURE.save(path)
    (tmp_path / "in" / "notes.txt").write_text("none")
    (tmp_path / "x[1].png").write_bytes((tmp_path / "in" / "a.png").read_bytes())
    for source, names in (
        (tmp_path / "in", ["a.png", "b.png", "c.png"]),
        (str(tmp_path / "in" / "*.png"), ["a.png", "b.png"]),
        (tmp_path / "in" / "**" / "[ac]*", ["a.png", "c.png"]),
        ([tmp_path / "in" / "b.png"], ["b.png"]),
        (iter([tmp_path / "in" / "b.png"]), ["b.png"]),
    ):
        found = predictor.predict(source)
        assert [one.path.name for one in found] == names
        for one in found:
            check(one)
    check(predictor.predict(tmp_path / "x[1].png"))
    with pytest.raises(DataError, match="no image matches it as a pattern"):
        predictor.predict(str(tmp_path / "*.gif"))


def test_tensors_of_other_channels(predictor: Predictor) -> None:
    alpha = torch.from_numpy(np.array(PICTURE.convert("RGBA"))).permute(2, 0, 1)
    check(predictor.predict(alpha))
    gray = torch.from_numpy(np.array(PICTURE)[None, :, :, 0])
    assert sorted(predictor.predict(gray, threshold=0.5).labels.tolist()) == [0, 1, 2]


def test_a_stream_takes_images_as_they_come() -> None:
    predictor = Predictor(ColorDetector(), device="cpu", batch_size=2)
    taken: list[int] = []

    def frames() -> Iterator[Image.Image]:
        for number in range(1000):
            taken.append(number)
            yield PICTURE

    found = predictor.stream(frames(), classes="red")
    assert not taken
    for number in range(3):
        assert next(found).names == ["red"]
        assert len(taken) == 2 * (number // 2 + 1), "only the images of one batch are read ahead"
    with pytest.raises(ValueError, match="threshold is a score"):
        predictor.stream(frames(), 1.5)
    assert len(list(predictor.stream([PICTURE] * 3))) == 3
    one: Any = np.asarray(PICTURE)  # is a stream too
    check(next(predictor.stream(one)))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_what_came_before_a_failure_is_answered(tmp_path: Path, batch_size: int) -> None:
    predictor = Predictor(ColorDetector(), device="cpu", batch_size=batch_size)

    def camera() -> Iterator[Image.Image]:
        yield from [PICTURE] * 3
        raise OSError("the camera is gone")

    missing = tmp_path / "none.png"
    for source, error in ((camera(), OSError), ([PICTURE] * 3 + [missing, PICTURE], DataError)):
        stream = predictor.stream(source)
        for _ in range(3):
            check(next(stream))
        with pytest.raises(error, match=r"the camera is gone|none\.png"):
            next(stream)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_open_file_is_one_image(predictor: Predictor, tmp_path: Path, kind: str) -> None:
    PICTURE.save(tmp_path / "a.png")
    found = predictor.predict(tmp_path / "a.png").scores.tolist()
    content = (tmp_path / "a.png").read_bytes()
    with io.BytesIO(content) if kind == "memory" else (tmp_path / "a.png").open("rb") as opened:
        assert predictor.predict(opened).scores.tolist() == found
        with pytest.raises(DataError, match=r"nothing is left to read in this open file; .* seek\(0\)"):
            predictor.predict([opened])
    with pytest.raises(DataError, match='is open as text; open it with mode "rb"'):
        predictor.predict(io.StringIO("a.png"))


def test_numbers_of_a_call_are_checked(predictor: Predictor) -> None:
    wrong: Any
    for wrong in ("int8", "FP16", None):
        with pytest.raises(ValueError, match="precision is 'fp32', 'bf16' or 'fp16', got"):
            Predictor(ColorDetector(), device="cpu", precision=wrong)
        with pytest.raises(ValueError, match="precision is 'fp32', 'bf16' or 'fp16', got"):
            autocast(torch.device("cpu"), wrong)
    with pytest.raises(TypeError, match="tta must be True or False, got 'no'"):
        Predictor(ColorDetector(), device="cpu", tta=cast(Any, "no"))
    with pytest.raises(TypeError, match="max_pixels must be a whole number, got '1e6'"):
        Predictor(ColorDetector(), device="cpu", max_pixels=cast(Any, "1e6"))
    for wrong in (1.0, True):
        with pytest.raises(TypeError, match="classes are names or ids, got"):
            predictor.predict(PICTURE, classes=wrong)
    for wrong in (1.5, True, "3", None):
        with pytest.raises(TypeError, match="batch_size must be a whole number, got"):
            Predictor(ColorDetector(), device="cpu", batch_size=wrong)
    for wrong in (1.5, True, "3"):
        with pytest.raises(TypeError, match="max_detections must be a whole number, got"):
            predictor.predict(PICTURE, max_detections=wrong)
    assert len(predictor.predict(PICTURE, 0.0, max_detections=np.int64(2))) == 2
    for wrong in ("0.5", [0.5], np.zeros(2)):
        with pytest.raises(TypeError, match="threshold is a score between 0 and 1, got"):
            predictor.predict(PICTURE, wrong)
    for wrong in (2, -0.1, float("nan"), True):
        with pytest.raises(ValueError, match="threshold is a score between 0 and 1, got"):
            predictor.predict(PICTURE, wrong)
    half: Any = torch.tensor(0.5)
    assert predictor.predict(PICTURE, half) == predictor.predict(PICTURE, 0.5)
    with pytest.raises(TypeError, match=r"an image is a path, .* not dict"):
        predictor.predict({"image": PICTURE})


def test_streams_of_several_threads_do_not_mix() -> None:
    predictor = Predictor(ColorDetector(), device="cpu", batch_size=2)
    pictures = [picture((80, 60), (k % 3, (5 + k, 10, 40, 50))) for k in range(6)]
    alone = [predictor.predict(one, classes=CATEGORIES[k % 3].id).to_dict() for k, one in enumerate(pictures)]
    found: dict[int, list[Any]] = {}

    def work(k: int) -> None:
        stream = predictor.stream((pictures[k] for _ in range(8)), classes=CATEGORIES[k % 3].id)
        found[k] = [one.to_dict() for one in stream]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {k: [alone[k]] * 8 for k in range(6)}


def test_two_views_of_an_image_are_made_one_set() -> None:
    check(Predictor(ColorDetector(), device="cpu", tta=True).predict(PICTURE))

    class Lopsided(ColorDetector):
        """Sees nothing in the right half, where the mirror image has what was left."""

        def detect(self, images: Any, padding_mask: Any, targets: Any) -> Any:
            half = images.clone()
            half[..., images.shape[-1] // 2 :] = 0
            return super().detect(half, padding_mask, targets)

    model = Lopsided()
    plain = Predictor(model, device="cpu").predict(PICTURE, threshold=0.1)
    found = Predictor(model, device="cpu", tta=True).predict(PICTURE, threshold=0.1)
    assert plain.names == ["red"]
    assert sorted(found.names) == ["blue", "red"]
    red = found[found.names.index("red")]
    np.testing.assert_allclose(red.box, plain.boxes[0], atol=1e-3)
    assert red.score == pytest.approx(plain.scores[0] / 2, rel=1e-5)  # of one view alone


def test_two_views_need_objects() -> None:
    from tests.small import small_model

    with pytest.raises(DataError, match="tta makes one set of objects"):
        Predictor(small_model("dape_lite0", task="sem"), device="cpu", tta=True).predict(PICTURE)
