"""Sharing trained models: a repository of the Hugging Face hub with the checkpoint and a card written from its run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.hub.model_card import CardFacts, model_card
    from detrkit.hub.push import from_pretrained, push_to_hub, repository_files

__getattr__ = import_on_use(
    __name__,
    {
        "model_card": ["CardFacts", "model_card"],
        "push": ["from_pretrained", "push_to_hub", "repository_files"],
    },
)
__all__ = ["CardFacts", "from_pretrained", "model_card", "push_to_hub", "repository_files"]
