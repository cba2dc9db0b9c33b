"""The programs: `python -m ray_jobs.<name> conf/<name>/<file>.yaml [key=value ...]`."""
