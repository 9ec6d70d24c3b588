"""Published checkpoint files: the catalogue, downloads, and checkpoints by name."""
