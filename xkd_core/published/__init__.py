"""Checkpoints of the published method: tensor names, files, encoders."""
