"""Published checkpoint files: the catalogue, downloads, and access by name."""
