"""What makes the generated sections of the documentation; see ``docs/generate.py``."""
