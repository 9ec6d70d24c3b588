"""Speed, size, memory and AP of checkpoints and exported models, side by side in one run."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from detrkit.data import DetectionDataset, load_dataset
from detrkit.data.images import read_image
from detrkit.data.records import ImageRecord
from detrkit.evaluation.finished import evaluate_finished
from detrkit.evaluation.loop import evaluate_model
from detrkit.export.example_images import example_images
from detrkit.inference.answers import Frame, answer
from detrkit.inference.preprocess import eval_transform
from detrkit.runtime.engines import usable_cores
from detrkit.runtime.info import FORMATS_OF_SUFFIX, is_artefact
from detrkit.runtime.light_predictor import LightPredictor
from detrkit.structures import pad_images
from detrkit.structures.thresholds import DEFAULT_THRESHOLD
from detrkit.weights import open_checkpoint
from detrkit.weights.artefact import open_artefact
from detrkit.weights.find import find_checkpoint

__all__ = ["BenchRow", "bench"]

sampling = torch.ops.detrkit.ms_deform_attn_sides  # deformable attention, an operator of its own

_PEAK = """
import resource, sys
from detrkit.{module} import {name} as Predictor
Predictor(sys.argv[1]).predict(sys.argv[2:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@dataclass
class BenchRow:
    """One model. Times are medians per image, in milliseconds, of batches of one image.

    Attributes:
        file: its name.
        format, precision: of an exported model; "torch" and "fp32" for a checkpoint.
        megabytes: on the disk.
        parameters: millions of numbers that a checkpoint's network has; None for exported models, as gflops.
        gflops: billions of floating-point operations for the first image, a multiplication with an addition as two.
        ap: AP (PQ, mIoU) on the data; None without data.
        pre, model, post: from the decoded picture to the input, through the network, and to detections.
        images_per_second: of the three together.
        peak_megabytes: largest memory of a process that only loads it and predicts; None if that failed.
    """

    file: str
    format: str
    precision: str
    megabytes: float
    parameters: float | None = None
    gflops: float | None = None
    ap: float | None = None
    pre: float = 0.0
    model: float = 0.0
    post: float = 0.0
    images_per_second: float = 0.0
    peak_megabytes: float | None = None


@dataclass
class _Times:
    pre: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    post: list[float] = field(default_factory=list)


class _Runner(Protocol):
    """A model in three steps."""

    def prepare(self, picture: Image.Image) -> Any: ...

    def run(self, inputs: Any) -> Any: ...

    def finish(self, outputs: Any, picture: Image.Image) -> object: ...


class _Checkpoint:
    """A checkpoint in eager torch."""

    def __init__(self, path: Path) -> None:
        self.model = open_checkpoint(path)
        self.transform = eval_transform(self.model.config)

    def prepare(self, picture: Image.Image) -> Any:
        sample = self.transform(picture, ImageRecord.unlabelled(picture))
        return *pad_images([sample.image], self.model.config.input.size_divisor), sample.image.shape[-2:]

    @torch.no_grad()
    def run(self, inputs: Any) -> Any:
        return self.model(*inputs[:2]), inputs

    def finish(self, outputs: Any, picture: Image.Image) -> object:
        predictions, (images, _, valid) = outputs
        frame = Frame(tuple(images.shape[-2:]), tuple(valid), (picture.height, picture.width))
        categories, config = self.model.categories, self.model.config
        return answer(
            predictions, [frame], config=config, categories=categories, task="det", threshold=DEFAULT_THRESHOLD
        )


class _Artefact:
    """An exported model without torch."""

    def __init__(self, path: Path, threads: int) -> None:
        self.predictor = LightPredictor(path, threads=threads)

    def prepare(self, picture: Image.Image) -> Any:
        return self.predictor.prepare([picture])

    def run(self, inputs: Any) -> Any:
        return self.predictor.engine.run(*inputs)

    def finish(self, outputs: Any, picture: Image.Image) -> object:
        return self.predictor.detections(outputs, 0, picture, DEFAULT_THRESHOLD)


def bench(
    paths: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    images: str | Path | None = None,
    threads: int | None = None,
    rounds: int = 3,
    memory: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure models on the same images in turns, so that all of them see the same moments of the machine.

    Args:
        paths: checkpoints, names and exported models.
        data: data set for AP; its images are used for the times too, unless ``images`` are given.
        images: folder of images; None: those of ``data``, else the embedded blood smears.
        threads: threads of the CPU; None: one per core that this process may use.
        rounds: how many times every image is predicted, after one that does not count.
        memory: measure the memory of a process of its own for every model.
        say: called with a line before every step.

    Returns:
        ``{"hardware": …, "threads": …, "images": …, "rows": [BenchRow as a dict, …]}``.

    Raises:
        DataError, CheckpointError: an image or a model cannot be used.
    """
    threads = threads or usable_cores()
    files = example_images(images, data)[:12]
    found = [find_checkpoint(path) for path in paths]
    rows = [_row(path) for path in found]
    with _torch_threads(threads):
        runners = [_Artefact(path, threads) if is_artefact(path) else _Checkpoint(path) for path in found]
        sets = {task: load_dataset(data, split="val", task=task) for task in {*map(_task, runners)}} if data else {}
        times = [_Times() for _ in runners]
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}" if number else "warming up")
            for file in files if number else files[:2]:
                picture = read_image(file)
                for runner, spent in zip(runners, times, strict=True):
                    _measure(runner, picture, spent if number else _Times())
    for path, row, spent, runner in zip(found, rows, times, runners, strict=True):
        info = runner.predictor.info if isinstance(runner, _Artefact) else None
        row.precision = info.precision if info is not None else row.precision
        row.pre, row.model, row.post = (median(part) * 1e3 for part in (spent.pre, spent.model, spent.post))
        row.images_per_second = 1e3 / (row.pre + row.model + row.post)
        if isinstance(runner, _Checkpoint):
            row.parameters = sum(parameter.numel() for parameter in runner.model.parameters()) / 1e6
            row.gflops = _operations(runner, read_image(files[0])) / 1e9
        if memory:
            say(f"memory of {row.file}")
            row.peak_megabytes = _peak(path, files[:3], threads)
        if data is not None:
            say(f"AP of {row.file}")
            row.ap = _score(runner, path, sets[_task(runner)])
    return {
        "hardware": _hardware(),
        "threads": threads,
        "images": len(files),
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
    }


def _task(runner: _Checkpoint | _Artefact) -> str:
    """What is scored: the model's own task, or the boxes of a file with its post-processing inside."""
    if isinstance(runner, _Checkpoint):
        return runner.model.config.architecture.task
    return "det" if runner.predictor.info.with_postprocess else runner.predictor.info.task


def _score(runner: _Checkpoint | _Artefact, path: Path, dataset: DetectionDataset) -> float | None:
    if isinstance(runner, _Checkpoint):
        return evaluate_model(runner.model, dataset).value
    if runner.predictor.info.with_postprocess:
        return evaluate_finished(runner.predictor, dataset).value
    return evaluate_model(open_artefact(path), dataset).value


def _row(path: Path) -> BenchRow:
    form = FORMATS_OF_SUFFIX.get(path.suffix.lower(), "torch")
    parts = [path, path.with_suffix(".bin")] if form == "openvino" else [path]
    megabytes = sum(part.stat().st_size for part in parts if part.is_file()) / 1e6
    return BenchRow(file=path.name, format=form, precision="fp32", megabytes=round(megabytes, 1))


def _measure(runner: _Runner, picture: Image.Image, spent: _Times) -> None:
    start = time.perf_counter()
    inputs = runner.prepare(picture)
    prepared = time.perf_counter()
    outputs = runner.run(inputs)
    done = time.perf_counter()
    runner.finish(outputs, picture)
    spent.pre.append(prepared - start)
    spent.model.append(done - prepared)
    spent.post.append(time.perf_counter() - done)


def _operations(runner: _Checkpoint, picture: Image.Image) -> int:
    """Floating-point operations of the network: products of matrices, convolutions, and samples of token rows."""
    images, padding, _ = runner.prepare(picture)
    with FlopCounterMode(display=False, custom_mapping={sampling: _sampling_operations}) as counter:
        runner.model(images, padding)  # with gradients: without, the counter fails where a parameter is an argument
    return counter.get_total_flops()


def _sampling_operations(
    value: Sequence[int], sides: object, locations: Sequence[int], *rest: object, **more: object
) -> int:
    """Four corners of every sample are weighed and added, channel by channel."""
    return 2 * 4 * math.prod(locations[:-1]) * value[-1]


def _peak(path: Path, images: Sequence[Path], threads: int) -> float | None:
    """Memory in megabytes of a process that predicts some images."""
    home = ("runtime.light_predictor", "LightPredictor") if is_artefact(path) else ("inference.predictor", "Predictor")
    code = _PEAK.format(module=home[0], name=home[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": str(threads)}
    words = [sys.executable, "-c", code, str(path), *map(str, images)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    return int(done.stdout) / 1e6 if done.returncode == 0 else None


def _hardware() -> str:
    """The processor, as the system names it, and its cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {usable_cores()} logical cores"


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
