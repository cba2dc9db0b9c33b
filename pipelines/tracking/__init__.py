"""MLflow runs: open and continue them, and log to them without holding up the work."""
