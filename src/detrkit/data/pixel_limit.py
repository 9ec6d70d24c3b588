"""How large a picture may be: what fits into the memory that is free, checked before a picture is decoded."""

from __future__ import annotations

import contextlib
from pathlib import Path

from PIL import Image

from detrkit.errors import DataError

__all__ = ["check_pixels", "free_memory", "reduction", "too_large"]

BYTES_PER_PIXEL = 16
"""Memory at the peak: decoded, turned upright, and the copy that is drawn on, 4 bytes each, and rows being resized."""

BYTES_PER_MASK_PIXEL = 4
"""Memory for one mask of the full size while it is written as run lengths."""

_SMALL = 25_000_000  # pixels of pictures that are not asked about


def check_pixels(size: tuple[int, int], name: str, max_pixels: int | None) -> None:
    """Refuse a picture (width, height) that has more than ``max_pixels``, or, for None, that does not fit into memory.

    Raises:
        DataError: the picture is too large.
    """
    problem = _problem(size, max_pixels)
    if problem:
        pixels = size[0] * size[1]
        raise DataError(f"{name}: {size[0]}x{size[1]} pixels ({pixels / 1e6:.0f} megapixels) {problem}")


def _problem(size: tuple[int, int], max_pixels: int | None) -> str | None:
    pixels = size[0] * size[1]
    if max_pixels is not None:
        if pixels > max_pixels:
            return f"are more than --max-pixels {max_pixels}; make it smaller, or raise the limit"
    elif pixels > _SMALL and pixels * BYTES_PER_PIXEL > (free := free_memory()):
        return (
            f"take about {pixels * BYTES_PER_PIXEL / 1e9:.1f} GB, but {free / 1e9:.1f} GB of memory are free; cut it "
            "into tiles or make it smaller, or say --max-pixels to try it all the same"
        )
    return None


def reduction(size: tuple[int, int], max_pixels: int | None, seen: tuple[int, int]) -> int:
    """By how much a JPEG of this size (width, height) can be decoded smaller so that it is not too large: 2, 4 or 8.

    1: it is not too large, or no reduction helps, because the picture would be smaller than the model sees it, or
    masks of its size would not fit into memory.

    seen: (shorter, longer side) that a model resizes pictures to.
    """
    if _problem(size, max_pixels) is None or size[0] * size[1] * BYTES_PER_MASK_PIXEL > free_memory():
        return 1
    most = max(min(size) / seen[0], max(size) / seen[1])
    fitting = (k for k in (2, 4, 8) if k <= most and _problem((-(-size[0] // k), -(-size[1] // k)), max_pixels) is None)
    return next(fitting, 1)


def too_large() -> str:
    """What to do about a picture that Pillow refuses without opening it."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return (
        f"more than {limit / 1e6:.0f} megapixels; cut it into tiles or make it smaller, or raise the limit with "
        "--max-pixels (in Python PIL.Image.MAX_IMAGE_PIXELS)"
    )


def free_memory() -> float:
    """Bytes that this process can still take: of the machine, of its control group, and of its own limits."""
    return max(0.0, min(_of_machine(), _of_group(), _of_process()))


def _of_machine() -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024.0
    return float("inf")


def _of_group() -> float:
    """The limit of a container (control groups of version 2), without what is only a cache of files."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit, used = int((root / "memory.max").read_text()), int((root / "memory.current").read_text())
        rows = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return float(limit - used + int(rows.get("inactive_file", 0)) + int(rows.get("active_file", 0)))
    return float("inf")


def _of_process() -> float:
    """``ulimit -v`` and ``ulimit -d``, less what is taken."""
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource  # not on Windows

        taken = [int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text().split()]
        limits = ((resource.RLIMIT_AS, taken[0]), (resource.RLIMIT_DATA, taken[5]))
        return min(
            (soft - used for kind, used in limits if (soft := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY),
            default=float("inf"),
        )
    return float("inf")
