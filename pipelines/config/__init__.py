"""The settings: one module per job, as `conf/` has one folder per job."""
