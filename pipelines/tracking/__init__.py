"""MLflow runs: open, log without holding up work, reopen."""
