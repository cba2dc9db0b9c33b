"""The clip dataset: its format, writing and reading shards, looking through it for leaks."""
