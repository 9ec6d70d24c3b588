"""Running exported models with numpy, Pillow and one inference engine; no module of this package needs torch.

These files are in both distributions: ``detrkit``, and ``detrkit-runtime``, which has nothing that needs torch. Modules
are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.runtime.engines import Engine, open_engine
    from detrkit.runtime.info import ArtefactInfo, is_artefact
    from detrkit.runtime.light_predictor import LightPredictor

__getattr__ = import_on_use(
    __name__,
    {
        "engines": ["Engine", "open_engine"],
        "info": ["ArtefactInfo", "is_artefact"],
        "light_predictor": ["LightPredictor"],
    },
)
__all__ = ["ArtefactInfo", "Engine", "LightPredictor", "is_artefact", "open_engine"]
