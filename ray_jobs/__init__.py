"""The jobs: `xkd JOB CONFIG [key=value ...]`, or `python -m ray_jobs.JOB CONFIG ...`."""

from ray_jobs.cli.environment import set_environment

set_environment()  # before a job imports MLflow
