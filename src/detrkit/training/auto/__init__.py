"""Recipes chosen from the data."""
