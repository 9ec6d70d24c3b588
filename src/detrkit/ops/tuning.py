"""Block sizes of the Triton kernels, as data.

They give every thread one or two vectors of 16 bytes of a row of values, and a launch of the presets (encoder: 2 x
22,223 queries, 8 heads; decoder: 1,100 queries) at least four blocks per multiprocessor. ``benchmarks/tune_kernels.py``
measures the candidates on the presets' shapes; widths 32 and 64 and the relation are measured on an H200
(docs/results.md), the others are estimates.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BACKWARD_LAUNCHES",
    "CANDIDATES",
    "FORWARD_LAUNCHES",
    "RELATION_BACKWARD_LAUNCH",
    "RELATION_CANDIDATES",
    "RELATION_FORWARD_LAUNCH",
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
RELATION_FORWARD_LAUNCH = RelationLaunch(16, 32, 4)
RELATION_BACKWARD_LAUNCH = RelationLaunch(16, 16, 4)

CANDIDATES = tuple(Launch(queries, warps) for queries in (4, 8, 16, 32, 64, 128) for warps in (1, 2, 4, 8))
"""What the measurement tries; more than 16 values per thread spill."""

RELATION_CANDIDATES = tuple(
    RelationLaunch(*sizes) for sizes in ((16, 32, 4), (16, 16, 4), (16, 16, 2), (16, 64, 4), (32, 16, 4), (32, 32, 8))
)
