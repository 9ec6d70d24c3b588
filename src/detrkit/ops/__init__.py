"""Kernels and arithmetic behind one function each; importing the package registers them as ``torch.ops.detrkit.*``."""

import detrkit.ops.ms_deform_attn  # noqa: F401
