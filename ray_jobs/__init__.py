"""The programs: `python -m ray_jobs.NAME CONFIG [key=value ...]`, or `xkd NAME CONFIG ...`."""

from ray_jobs.cli.environment import set_environment

set_environment()  # before a job imports MLflow
