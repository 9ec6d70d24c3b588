"""A sample depends only on (seed, epoch, index); unreadable images are an error, or are replaced and counted."""

from __future__ import annotations

import json
import pickle
import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit.data import AspectRatioBatchSampler, DetectionDataset, TrainTransform, build_loader, load_dataset
from detrkit.errors import DataError
from detrkit.structures import Batch
from tests.data.trees import BOXES, coco_tree, dump, write_image

SMALL = TrainTransform(short_sides=(24, 32, 40), max_side=64, crop_short_sides=(30, 40), crop_size=(20, 32))


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    return load_dataset(coco_tree(tmp_path / "data"), split="train").with_transform(SMALL)


@pytest.fixture
def many(tmp_path: Path) -> DetectionDataset:
    """A data set of ten images."""
    images = []
    for number in range(10):
        size = (40, 30) if number % 2 else (30, 40)
        write_image(tmp_path / f"{number}.png", size, seed=number)
        images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
    boxes = [{"image_id": n, "category_id": 1, "bbox": [2, 3, 10 + n, 12], "id": n + 1} for n in range(10)]
    path = dump(tmp_path / "x.json", {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]})
    return load_dataset(tmp_path, annotations=path).with_transform(SMALL)


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.images, second.images) and all(
        torch.equal(a.boxes, b.boxes) and a.image_id == b.image_id
        for a, b in zip(first.targets, second.targets, strict=True)
    )


def test_samples_repeat_and_epochs_differ(dataset: DetectionDataset) -> None:
    dataset.set_epoch(3, 0)
    first = [dataset[0] for _ in range(2)]
    assert torch.equal(first[0].image, first[1].image)
    seen = set()
    for epoch in range(6):
        dataset.set_epoch(3, epoch)
        seen.add((dataset[0].image.shape, float(dataset[0].image.sum())))
    assert len(seen) >= 4
    assert torch.equal(dataset[-1].image, dataset[2].image)
    with pytest.raises(IndexError):
        dataset[3]


def test_the_global_generators_do_not_change(dataset: DetectionDataset) -> None:
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())

    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = draws()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    _ = dataset[0]
    assert draws() == expected


def test_a_data_set_with_another_transform_has_its_own_epoch(dataset: DetectionDataset) -> None:
    other = dataset.with_transform(SMALL)
    dataset.set_epoch(5, 5)
    assert other._seed_and_epoch.tolist() == [0, 0]
    assert other.records[0] is dataset.records[0]


def test_workers_and_resuming_change_nothing(many: DetectionDataset) -> None:
    def epochs(workers: int, start: int = 0) -> list[Batch]:
        sampler = AspectRatioBatchSampler(aspect_ratios=many.aspect_ratios, batch_size=3, seed=1)
        loader = build_loader(many, sampler, workers=workers)
        batches = []
        for epoch in (0, 1):
            many.set_epoch(7, epoch)
            sampler.set_epoch(epoch, start if epoch == 0 else 0)
            batches += list(loader)
        return batches

    torch.manual_seed(0)
    before = torch.get_rng_state()
    expected = epochs(0)
    assert len(expected) == 8
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(expected[0], expected[4])
    for workers in (1, 2):
        assert all(same(a, b) for a, b in zip(expected, epochs(workers), strict=True)), workers
    assert all(same(a, b) for a, b in zip(expected[2:], epochs(2, start=2), strict=True))


def test_batches_are_padded(many: DetectionDataset) -> None:
    sampler = AspectRatioBatchSampler(aspect_ratios=many.aspect_ratios, batch_size=5, shuffle=False)
    for batch in build_loader(many, sampler):
        assert batch.images.shape[0] == len(batch.targets) == 5
        for image, mask, target in zip(batch.images, batch.padding_mask, batch.targets, strict=True):
            height, width = target.size
            assert not mask[:height, :width].any()
            assert int((~mask).sum()) == height * width
            assert (image[:, mask] == 0).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_an_error_or_are_replaced(tmp_path: Path, workers: int) -> None:
    root = coco_tree(tmp_path / "data")
    broken = root / "images" / "train" / "b.png"
    broken.write_bytes(broken.read_bytes()[:200])
    strict = load_dataset(root)
    with pytest.raises(DataError, match=r"b\.png: the image cannot be read.* on_error to skip"):
        strict[1]
    loader = build_loader(strict, AspectRatioBatchSampler(length=3, batch_size=3), workers=workers)
    with pytest.raises(DataError, match=r"b\.png") as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)  # no traceback of a worker
    lenient = load_dataset(root, on_error="skip").with_transform(SMALL)
    sampler = AspectRatioBatchSampler(length=3, batch_size=1, shuffle=False)
    batches = list(build_loader(lenient, sampler, workers=workers))
    assert [batch.targets[0].image_id for batch in batches] == [1, 3, 3]
    assert lenient.skipped_images == ["b.png"]
    assert [image["id"] for image in lenient.coco_ground_truth()["images"]] == [1, 3]
    for name in BOXES["train"]:
        (root / "images" / "train" / name).write_bytes(b"")
    with pytest.raises(DataError, match="none of its 3 images can be read"):
        load_dataset(root, on_error="skip")[0]


def test_an_image_of_another_size_is_an_error(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    write_image(root / "images" / "train" / "a.png", (41, 30))
    with pytest.raises(DataError, match=r"a\.png: the image is 41x30 pixels but its annotations say 40x30"):
        load_dataset(root)[0]


def test_ground_truth_is_as_in_the_file(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    path = root / "annotations" / "instances_val.json"
    data = json.loads(path.read_text())
    data["annotations"][0].update(id=0, iscrowd=1, area=3.5, bbox=[-1, -1, 12, 12])
    data["annotations"][1].update(segmentation=[[0, 0, 5, 0, 5, 5]])
    data["annotations"][2].update(bbox=[40, 0, 5, 5.5])  # completely outside: never trained on, but counted as missed
    data["categories"] = [{"id": 1, "name": "bolt"}, {"id": 90, "name": "nut"}]
    data["annotations"][1]["category_id"] = 90
    dump(path, data)
    dataset = load_dataset(root, split="val")
    truth = dataset.coco_ground_truth()
    rows = truth["annotations"]
    assert [row["id"] for row in rows] == [1, 2, 3]  # no id 0
    assert rows[0]["bbox"] == [-1, -1, 12, 12]  # as in the file, not clipped
    assert (rows[0]["iscrowd"], rows[0]["area"]) == (1, 3.5)
    assert rows[1]["category_id"] == 90
    assert (rows[1]["area"], rows[1]["bbox"]) == (100, [30, 20, 10, 10])
    assert rows[2]["bbox"] == [40, 0, 5, 5.5]
    assert dataset.records[1].boxes.tolist() == [[30, 20, 40, 30]]
    assert not any("segmentation" in row for row in rows)  # the largest part of a file, and not needed for boxes
    assert truth["categories"] == [{"id": 1, "name": "bolt"}, {"id": 90, "name": "nut"}]
    json.dumps(truth, allow_nan=False)


def test_ground_truth_does_not_need_the_annotation_file_again(dataset: DetectionDataset, tmp_path: Path) -> None:
    before = dataset.coco_ground_truth()
    for path in (tmp_path / "data" / "annotations").iterdir():
        path.unlink()
    assert dataset.coco_ground_truth() == before


def test_data_sets_can_be_sent_to_other_processes(dataset: DetectionDataset) -> None:
    other = pickle.loads(ForkingPickler.dumps(dataset))  # like a queue, which sends handles of shared memory
    dataset.set_epoch(9, 4)
    assert other._seed_and_epoch.tolist() == [9, 4]
    assert torch.equal(other[0].image, dataset[0].image)
    assert pickle.loads(pickle.dumps(dataset.categories)).ids == dataset.categories.ids
