"""Blocks of Salience-DETR alone."""
