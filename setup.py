"""Packages of the wheel; everything else about it is in pyproject.toml.

`conf/` stays at the top, where people look for it, and travels as `ray_jobs/conf`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["xkd_core*", "pipelines*", "ray_jobs*"]), "ray_jobs.conf"],
    package_dir={"ray_jobs.conf": "conf"},
    package_data={
        "": ["py.typed"],
        "pipelines.report": ["templates/*.html"],
        "ray_jobs.conf": ["**/*.yaml", "README.md"],
    },
)
