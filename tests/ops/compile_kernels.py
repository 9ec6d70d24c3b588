"""Compile every Triton kernel for GPUs that are not here: prints JSON, kernel by kernel. Run without TRITON_INTERPRET.

python tests/ops/compile_kernels.py CAPABILITY ...
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from detrkit.ops import ms_deform_attn_triton as sampling
from detrkit.ops import relation_attention_triton as relation
from detrkit.ops.tuning import (
    BACKWARD_LAUNCHES,
    FORWARD_LAUNCHES,
    RELATION_COLUMNS,
    RELATION_FORWARD,
    RELATION_ROWS,
)

VALUES = {"values", "q", "k", "v", "grad_q", "grad_k", "grad_v"}
NUMBERS = {"tokens", "queries", "blocked_image"} | {f"{side}{n}" for n in range(5) for side in ("height", "width")}
FLOATS = {"softmax_scale", "relation_scale"}
DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}


def compiled(kernel: Any, dtype: str, constants: dict[str, Any], warps: int, capability: int) -> dict[str, Any]:
    """Compile a kernel with its values of one dtype; all other tensors are float32."""
    names, signature, aligned = kernel.arg_names, {}, {}
    for index, name in enumerate(names):
        values = VALUES if "REAL" in constants else VALUES | {"gradient", "output"}
        kind = "i32" if name in NUMBERS else "fp32" if name in FLOATS else "*" + (dtype if name in values else "fp32")
        if name == "grad_values" and constants["FIXED"]:
            kind = "*i64"
        signature[name] = "constexpr" if name in constants else kind
        if signature[name].startswith("*"):
            aligned[(index,)] = [["tt.divisibility", 16]]
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    found = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": 1})
    text = found.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "dtype": dtype,
        "capability": capability,
        "shared_memory": found.metadata.shared,
        "vector_loads": text.count("ld.global.v4.b32"),
        "vector_atomics": text.count("add.v4.f32"),
    }


def main() -> None:
    """One line per kernel."""
    for capability in map(int, sys.argv[1:]):
        for dtype, width in (("bf16", 32), ("fp32", 32), ("fp16", 34)):
            padded = triton.next_power_of_2(width)
            constants = {"HEADS": 8, "WIDTH": width, "PADDED": padded, "LEVELS": 4, "POINTS": 4}
            constants |= {"INDEX": tl.int32, "ACC": tl.float32}
            launch = FORWARD_LAUNCHES[padded]
            row = compiled(
                sampling._forward_kernel, dtype, constants | {"BLOCK": launch.queries}, launch.warps, capability
            )
            print(json.dumps(row | {"width": width}))
            launch = BACKWARD_LAUNCHES[padded]
            for fixed in (False, True):
                own = constants | {"BLOCK": launch.queries, "FIXED": fixed}
                row = compiled(sampling._backward_kernel, dtype, own, launch.warps, capability)
                print(json.dumps(row | {"width": width, "fixed": fixed}))
        for dtype in ("bf16", "fp32"):
            constants = {"REAL": 8, "HEADS": 8, "TRUE": 32, "WIDTH": 32, "FREQUENCIES": 8, "MASKED": True}
            constants |= {"PRODUCT": DTYPES[dtype], "LOG_BASE": -2 / 16 * math.log2(10000)}
            names = {"_forward_kernel": RELATION_FORWARD, "_backward_rows_kernel": RELATION_ROWS}
            names |= {"_backward_columns_kernel": RELATION_COLUMNS}
            for name, launches in names.items():
                launch = launches[4 if dtype == "fp32" else 2]
                own = constants | {"ROWS": launch.rows, "COLUMNS": launch.columns, "TOGETHER": launch.together}
                own["PRECISION"] = launch.exact if dtype == "fp32" else "tf32"
                print(json.dumps(compiled(getattr(relation, name), dtype, own, launch.warps, capability)))


if __name__ == "__main__":
    main()
