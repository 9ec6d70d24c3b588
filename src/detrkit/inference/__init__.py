"""Prediction with a trained model: reading images, post-processing, and writing results."""
