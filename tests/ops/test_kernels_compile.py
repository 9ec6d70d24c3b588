"""The Triton kernels compile for GPUs; Triton brings the compiler, and no GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit.ops.relation_attention import SHARED_MEMORY

PROGRAM = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(capability: int, tmp_path: Path) -> None:
    """Rows of 32 channels are read, and on sm_90 added, in vectors; shared memory is what the capability rule says."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(capability)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 15
    for row in rows:
        if row.get("width") == 32 and (row["dtype"] == "fp32" or row["kernel"] == "_forward_kernel"):
            assert row["vector_loads"] >= 16, row
        if row.get("width") == 32 and row.get("fixed") is False and capability == 90:
            assert row["vector_atomics"] >= 16, row
        if "width" not in row:
            dtype = torch.bfloat16 if row["dtype"] == "bf16" else torch.float32
            assert row["shared_memory"] <= SHARED_MEMORY[dtype], row
