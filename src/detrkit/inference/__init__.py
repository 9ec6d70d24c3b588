"""From a trained model to detections in pixels: checkpoints, prediction, post-processing, evaluation, drawing."""
