"""Blocks that only Salience-DETR uses."""
