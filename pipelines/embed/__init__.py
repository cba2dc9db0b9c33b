"""Computes embeddings of media with a registered model."""
