"""Checkpoints of the published repositories: recognise them, load them into our models, write them back."""
