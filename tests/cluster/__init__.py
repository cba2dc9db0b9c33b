"""A cluster of machines that share nothing, on one Linux: `python -m tests.cluster`."""
