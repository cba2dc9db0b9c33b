"""Frozen features and their scores, of a checkpoint or while training."""
