"""The table of registered models."""

from __future__ import annotations

from generator.tables import table

__all__ = ["SECTIONS"]


def registered() -> str:
    """Every registered model: what it is, queries, parameters at its own class count."""
    import torch

    import detrkit
    from detrkit.models.registry import REGISTRY

    rows = []
    for name, entry in sorted(REGISTRY.items(), key=lambda item: item[0].endswith("_lite0")):
        with torch.device("meta"):  # no memory for the weights
            model = detrkit.create_model(name)
        parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        architecture = model.config.architecture
        queries = str(architecture.num_queries)
        rows.append([f"`{name}`", entry.summary, queries, str(architecture.num_classes), f"{parameters:.1f} M"])
    return table(["name", "what", "queries", "classes", "parameters"], rows)


SECTIONS = {"registered models": registered}
