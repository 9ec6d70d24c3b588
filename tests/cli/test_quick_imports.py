"""Commands start without torch's compiler, and have it where it is needed."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cli.test_main import SOURCE

PROGRAM = """
import gc, sys
from detrkit.cli.quick_imports import quick_imports
with quick_imports():
    import torch, torchvision, timm
    from detrkit.ops.exporting import is_exporting
    assert not gc.isenabled()
assert gc.isenabled()
assert "sympy" not in sys.modules
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

seen = []
@torch.compiler.disable
def aside(x):
    seen.append(torch.compiler.is_compiling())
    return x + 1
@torch.compiler.assume_constant_result
def ours():
    return 1
def theirs():
    return 1
assert aside(torch.ones(1)).item() == 2
boxes = tv_tensors.BoundingBoxes(torch.ones(1, 4), format="XYXY", canvas_size=(4, 4))
assert functional.resize(boxes, [8, 8]).canvas_size == (8, 8)
assert not is_exporting()
assert "sympy" not in sys.modules, "nothing of this needs the compiler"

import torch._dynamo.exc as part
assert part is sys.modules["torch._dynamo.exc"] is torch._dynamo.exc and part.__spec__.origin == part.__file__
assert torch._dynamo.symbolic_convert.exc is part, "each part is loaded once"
torch.use_deterministic_algorithms(True)
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0, 0, 2, 2.0]])], 1).item() == 1
compiled = torch.compile(lambda x: aside(x * 2) * 3, backend="eager")
assert compiled(torch.ones(1)).item() == 9
assert seen == [False, False], "it is not compiled"
assert "sympy" in sys.modules
import torch._dynamo
assert torch._dynamo.__file__ and torch._dynamo.utils.__file__
assert vars(torch._dynamo.assume_constant_result(theirs)) == vars(ours)
assert torch._dynamo.config.cache_size_limit > 0
with quick_imports():
    pass
assert torch._dynamo.__file__ and sys.modules["torch._dynamo"].__file__
print("done")
"""


def test_the_compiler_is_loaded_when_it_is_needed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "done"
