"""What a run leaves: how predictions and ground truth differ, and the page that shows it. Nothing here loads torch."""

from detrkit.report.analysis import Analysis, analyse
from detrkit.report.scored_set import ScoredSet, scored_set

__all__ = ["Analysis", "ScoredSet", "analyse", "scored_set"]
