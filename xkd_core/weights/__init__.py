"""Weights that networks begin from."""
