"""The sources of a job: folders, lists, published datasets and synthetic clips."""
