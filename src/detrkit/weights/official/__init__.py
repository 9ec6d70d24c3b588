"""Checkpoints of the published repositories: recognised, loaded into our models, written back."""
