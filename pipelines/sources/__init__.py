"""What a job is given: folders, lists, published datasets, synthetic clips."""
