"""Recipes that are chosen from the data."""
