"""Block sizes of the Triton kernels, as data.

They give every thread one or two vectors of 16 bytes of a row of values, and a launch of the presets (encoder: 2 x
22,223 queries, 8 heads; decoder: 1,100 queries) at least four blocks per multiprocessor. On an H200 sampling with width
32 takes 1.0 to 1.2 times as long as its memory accesses alone (docs/kernels.md); the other widths follow the same rule.
``benchmarks/tune_kernels.py`` measures the candidates.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BACKWARD_LAUNCHES",
    "CANDIDATES",
    "FORWARD_LAUNCHES",
    "RELATION_CANDIDATES",
    "RELATION_COLUMNS",
    "RELATION_FORWARD",
    "RELATION_ROWS",
    "Launch",
    "RelationLaunch",
]


class Launch(NamedTuple):
    """How a kernel of deformable attention is launched."""

    queries: int
    """Queries per program."""

    warps: int


class RelationLaunch(NamedTuple):
    """How the kernels of attention with a relation are launched."""

    rows: int
    """Queries per program; each program has all heads."""

    columns: int
    """Keys per step."""

    warps: int

    together: bool = False
    """Whether sine and cosine of a frequency are made at once: half the arithmetic, more registers."""

    exact: str = "ieee"
    """How exact products of float32 are made: on the cores for it, or as three TF32 products ("tf32x3")."""


# Width of a head, padded to a power of two -> launch.
FORWARD_LAUNCHES = {
    1: Launch(64, 2),
    2: Launch(64, 2),
    4: Launch(64, 2),
    8: Launch(64, 4),
    16: Launch(32, 4),
    32: Launch(32, 4),
    64: Launch(16, 4),
    128: Launch(8, 4),
}
BACKWARD_LAUNCHES = {
    1: Launch(64, 2),
    2: Launch(64, 2),
    4: Launch(64, 2),
    8: Launch(32, 4),
    16: Launch(32, 4),
    32: Launch(16, 4),
    64: Launch(8, 4),
    128: Launch(4, 4),
}
# By bytes of a number of q. Sine and cosine at once halve the time of the kernel of columns and more than double that
# of rows, whose registers spill (an H200, docs/kernels.md).
RELATION_FORWARD = dict.fromkeys((2, 4), RelationLaunch(16, 32, 4, together=True, exact="tf32x3"))
RELATION_ROWS = {2: RelationLaunch(16, 16, 4), 4: RelationLaunch(16, 16, 8)}
RELATION_COLUMNS = {2: RelationLaunch(16, 16, 4, together=True), 4: RelationLaunch(16, 16, 8)}

CANDIDATES = tuple(Launch(queries, warps) for queries in (4, 8, 16, 32, 64, 128) for warps in (1, 2, 4, 8))
"""What the measurement tries; more than 16 values per thread spill."""

RELATION_CANDIDATES = tuple(
    RelationLaunch(*sizes, together)
    for together in (False, True)
    for sizes in ((16, 16, 4), (16, 16, 8), (16, 32, 4), (16, 32, 8))
)
