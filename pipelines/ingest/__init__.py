"""Turns sources into a clip dataset, each source exactly once."""
