"""The clip dataset: its format, its shards and index, and the review that finds leaks."""
