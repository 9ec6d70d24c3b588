"""Operators and box arithmetic; importing the package registers the operators as ``torch.ops.detrkit.*``."""

import detrkit.ops.ms_deform_attn  # noqa: F401
