"""Evaluation of a model on a data set: ``evaluate`` takes paths and recipes, ``loop`` a model and a data set."""
