"""A registered model over media gives embeddings."""
