"""Sources become a clip dataset, each exactly once."""
