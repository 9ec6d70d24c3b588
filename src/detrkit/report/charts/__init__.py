"""Pictures of a run: matplotlib for charts, Pillow for images. Nothing is loaded before something is drawn."""
