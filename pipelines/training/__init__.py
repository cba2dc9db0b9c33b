"""Training on Ray Train: from a clip dataset to checkpoints."""
