"""A clip dataset becomes checkpoints, on Ray Train."""
