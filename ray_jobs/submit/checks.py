"""Checks of a submission from the cluster itself, before anything is uploaded."""

import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from pipelines import autoscaler
from pipelines.config.base import JobConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.run import RunConfig
from pipelines.config.sweep import SweepConfig
from pipelines.errors import UserError
from pipelines.filesystems import store_failure
from ray_jobs.submit import probe
from ray_jobs.submit.places import HOME_OF_CLUSTER, places
from ray_jobs.submit.server import answering, submit
from ray_jobs.submit.submission import Submission

_PROBE_SECONDS = 180.0
_POLL_SECONDS = 0.5
_LEAST_PYTHON = (3, 11)


def check_on_cluster(client: JobSubmissionClient, submission: Submission) -> None:
    """Runs a small job on the cluster that looks at versions, places and resources.

    Raises:
        UserError: If the job could not run there. The message names every reason.
    """
    asked = places(submission.config)
    found = _probed(client, asked, submission.variables())
    mistakes = [*_version_mistakes(found, submission), *_place_mistakes(asked, found["places"])]
    mistakes += resource_mistakes(submission.config, found["nodes"], found["most"])
    if mistakes:
        lines = mistakes if len(mistakes) == 1 else [f"{len(mistakes)} mistakes", *mistakes]
        raise UserError("\n  ".join(lines))
    if found["python"].split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
        print(f"note: the cluster runs Python {found['python']}")


def probe_code() -> str:
    """Returns the program of the small job: `probe.py`, and of XKD what it imports."""
    sent, imported = inspect.getsource(autoscaler), inspect.getsource(probe)
    return sent + imported.replace("from pipelines.autoscaler import autoscaler_limits\n", "")


def _probed(
    client: JobSubmissionClient, asked: Sequence[Mapping[str, Any]], variables: Mapping[str, str]
) -> dict[str, Any]:
    question = json.dumps({"places": list(asked), "marker": HOME_OF_CLUSTER})
    job = submit(
        client,
        entrypoint=f"python -c {shlex.quote(probe_code())} {shlex.quote(question)}",
        runtime_env={"env_vars": dict(variables)},
        metadata={"xkd.job": "probe"},
    )
    with answering(client, job):
        status = _ended(client, job)
        log = client.get_job_logs(job)
        answers = [line for line in log.splitlines() if line.startswith(probe.MARK)]
        if status != JobStatus.SUCCEEDED or not answers:
            last = next((line for line in reversed(log.splitlines()) if line.strip()), "no output")
            raise UserError(f"a small job fails on the cluster: {last[:300]}")
    # The job stays: of one that is deleted at once, Ray makes another without a name that failed.
    found: dict[str, Any] = json.loads(answers[-1].removeprefix(probe.MARK))
    return found


def _ended(client: JobSubmissionClient, job: str) -> JobStatus:
    """Waits for a small job; one that is not waited for is stopped."""
    until = time.monotonic() + _PROBE_SECONDS
    try:
        while not (status := client.get_job_status(job)).is_terminal():
            if time.monotonic() > until:
                raise UserError(f"the cluster has not run a small job in {_PROBE_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)
    except (KeyboardInterrupt, UserError):
        with suppress(RuntimeError, OSError):
            client.stop_job(job)
        raise
    return status


def _version_mistakes(found: Mapping[str, Any], submission: Submission) -> list[str]:
    mistakes = []
    if found["ray"] != ray.__version__:
        mistakes.append(f"the cluster runs Ray {found['ray']}, and here is Ray {ray.__version__}")
    if tuple(map(int, found["python"].split(".")[:2])) < _LEAST_PYTHON:
        mistakes.append(f"the cluster runs Python {found['python']}, and XKD needs 3.11 or newer")
    if found["missing"] and submission.environment == "image":
        mistakes.append(
            f"the cluster lacks {', '.join(found['missing'])}: take XKD's image (docker/), or "
            "--environment uv, which installs all packages when the job starts"
        )
    return mistakes


def _place_mistakes(
    asked: Sequence[Mapping[str, Any]], problems: Sequence[tuple[str, str]]
) -> list[str]:
    return [
        f"{one['setting']} ({one['place'].replace(HOME_OF_CLUSTER + '/', '')}) {problem}"
        + (f": {store_failure(OSError(said))}" if said else "")
        for one, (problem, said) in zip(asked, problems, strict=True)
        if problem
    ]


def resource_mistakes(
    config: JobConfig,
    nodes: Sequence[Mapping[str, float]],
    most: Mapping[str, float] | None,
) -> list[str]:
    """Returns why the cluster can never run a job.

    Args:
        config: Settings of the job.
        nodes: Resources of its nodes.
        most: What its autoscaler can grow it to; None without one, empty if it does not say.
    """
    needed, check = _needs(config)
    try:
        check(nodes)
    except UserError as error:
        if config.ray.wait_seconds:  # nodes may come without an autoscaler too
            return []
        if most is None:
            return [str(error)]
        if not most:
            return []
        kinds = {kind for bundle in needed for kind in bundle}
        sums = {kind: sum(bundle.get(kind, 0.0) for bundle in needed) for kind in kinds}
        short = [kind for kind in sorted(sums) if most.get(kind, 0.0) < sums[kind]]
        return [
            f"{error}, and its autoscaler adds at most {most.get(kind, 0.0):g} {kind} "
            f"of {sums[kind]:g}"
            for kind in short
        ]
    return []


def _needs(
    config: JobConfig,
) -> tuple[list[dict[str, float]], Callable[[Sequence[Mapping[str, float]]], object]]:
    """Returns what a job needs at least, each part on one node, and the check of it."""
    from pipelines.sweep.checks import trial_bundles, trials_at_once
    from pipelines.training.resources import least_bundles, worker_resources
    from ray_jobs.run import pretrain_config

    if isinstance(config, SweepConfig):
        return trial_bundles(config), lambda nodes: trials_at_once(config, nodes)
    if isinstance(config, RunConfig):
        config = pretrain_config(config)
    if isinstance(config, PretrainConfig):
        training = config
        return least_bundles(training), lambda nodes: worker_resources(training, nodes)
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if getattr(config, "use_gpu", False) else {})

    def check(nodes: Sequence[Mapping[str, float]]) -> None:
        if not any(all(node.get(kind, 0.0) >= 1 for kind in bundle) for node in nodes):
            raise UserError(f"the job needs 1 {' and 1 '.join(bundle)}, which no node of Ray has")

    return [bundle], check
