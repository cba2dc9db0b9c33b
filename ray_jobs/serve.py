"""`python -m ray_jobs.serve NAME@ALIAS`: serves a registered model over HTTP."""

import logging
import os
import socket
import sys
import time
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

import torch

from pipelines.config.serve import TOKEN, ServeConfig
from pipelines.errors import JobFailed
from pipelines.nodes import wait_for_nodes
from pipelines.quantities import counted
from pipelines.redaction import one_line
from pipelines.registry.signing import check_keys
from pipelines.registry.uri import resolve_model
from pipelines.serving.room import check_room
from ray_jobs.cli.checks import decoder_mistakes, messages
from ray_jobs.cli.cluster import check_ray, connected, ray_address
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS

_LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 120.0
_ENDED = ("NOT_STARTED", "DEPLOY_FAILED", "DELETING")
"""States of an application that is not coming back. A replica that dies makes it unhealthy until
Ray Serve has started another one."""


def plan(config: ServeConfig) -> JobPlan:
    """What serving reads, and what would prevent it."""
    mistakes = messages(
        lambda: resolve_model(config.uri, config.tracking),
        check_keys,
        lambda: check_ray(config.ray),
    )
    mistakes += decoder_mistakes(config, config.decoder)
    if ray_address(config.ray) is None:
        here = {"CPU": config.ray.num_cpus or os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
        mistakes += messages(lambda: check_room(config, [here])) + _port_mistakes(config)
    return JobPlan(reads=(config.uri,), writes=(), mistakes=mistakes)


def _port_mistakes(config: ServeConfig) -> tuple[str, ...]:
    """Why the address cannot be listened on."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            where = f"host ({config.host}) and port ({config.port})"
            return (f"{where} cannot be used: {one_line(error)}; take another port",)
    return ()


def work(config: ServeConfig) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    # Here, because they load Ray Serve, which is optional.
    from ray import serve

    from pipelines.serving.application import NAME, application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # A Ray of its own gives its workers the lowest priority, and clients wait for these.
    os.environ.setdefault("RAY_worker_niceness", "0")
    print(f"serve: starting {counted(config.num_replicas, 'replica')} of {config.uri}", flush=True)
    with connected(config.ray):
        asked = {"CPU": config.num_cpus, "GPU": config.num_gpus}
        replica = {name: number for name, number in asked.items() if number}
        wait_for_nodes(
            lambda nodes: check_room(config, nodes),
            [replica] * config.num_replicas,
            config.ray.wait_seconds,
        )
        try:
            app = application(config)
            _start(config)
            serve.run(app, name=NAME, route_prefix="/")
            if ray_address(config.ray) is None:
                _wait_for_answer(config)
            _print_address(config)
            while serve.status().applications[NAME].status not in _ENDED:
                time.sleep(_LOOK_SECONDS)
            raise JobFailed("the service does not run any more; --verbose shows its log")
        except KeyboardInterrupt:
            print("serve: stopped", flush=True)
        except (RuntimeError, KeyError) as error:
            raise JobFailed(f"the service did not start: {one_line(error)}") from error
        finally:
            if ray_address(config.ray) is None:
                serve.shutdown()
            else:  # the applications of others stay
                serve.delete(NAME)


def _start(config: ServeConfig) -> None:
    """Starts Ray Serve, or joins the one of the cluster."""
    from ray import serve

    options = {"host": config.host, "port": config.port}
    try:
        serve.start(proxy_location="HeadOnly", http_options=options)
    except TimeoutError:
        # Ray Serve waits 60 s for its HTTP server, which a busy machine may need. It goes on
        # starting; the second call finds it.
        serve.start(proxy_location="HeadOnly", http_options=options)


def _wait_for_answer(config: ServeConfig) -> None:
    """Waits until the HTTP server passes requests on.

    Raises:
        JobFailed: If it does not in time.
    """
    end = time.monotonic() + _ANSWER_SECONDS
    while True:
        connection = HTTPConnection(config.host, config.port, timeout=_LOOK_SECONDS)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == HTTPStatus.OK:
                return
            reason = "another program has its port"
        except (OSError, HTTPException) as error:
            reason = one_line(error)
        finally:
            connection.close()
        if time.monotonic() > end:
            raise JobFailed(f"{_address(config)} does not answer: {reason}")
        time.sleep(_LOOK_SECONDS / 10)


def _address(config: ServeConfig) -> str:
    return f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}"


def _print_address(config: ServeConfig) -> None:
    address = _address(config)
    token = f' -H "Authorization: Bearer ${TOKEN}"' if os.environ.get(TOKEN) else ""
    print(f"serve: {config.uri} at {address}; its interface: {address}/docs")
    print(f"  curl -F file=@FILM.mp4{token} {address}/v1/embeddings/file")
    print("  Ctrl-C stops it", flush=True)


JOB = Job(
    summary=JOBS["serve"],
    schema=ServeConfig,
    plan=plan,
    work=work,
    how_to_go_on="The same command starts it again.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))
