"""Blocks that papers share."""
