"""Frozen features and their scores, of a checkpoint or during training."""
