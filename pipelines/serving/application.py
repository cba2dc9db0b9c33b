"""The service as an application of Ray Serve.

xkd serve xkd-video@champion                                                    starts it
serve run pipelines.serving.application:application model=xkd-video@champion    the same
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from pipelines.config.serve import TOKEN, ServeConfig
from pipelines.registry.pull import fetch
from pipelines.registry.uri import resolve_model
from pipelines.serving.app import make_app
from pipelines.serving.embedder import Embedder
from pipelines.serving.guard import hash_of
from pipelines.tracking.server import tracking_uri

NAME = "xkd"


def application(config: ServeConfig) -> Application:
    """Makes the application of a model.

    Args:
        config: Its settings. `host` and `port` are those of Ray Serve where it runs already.

    Raises:
        UserError: If the model does not exist or was changed.
    """
    version = resolve_model(config.uri, config.tracking)
    server = tracking_uri(config.tracking)
    with TemporaryDirectory(prefix="xkd-model-") as copy:  # before any replica starts
        fetch(version, server, Path(copy))
    token = os.environ.get(TOKEN)
    token_hash = hash_of(token) if token else None

    def build() -> FastAPI:
        """Runs in each replica."""
        return make_app(Embedder(config, version, server), config, token_hash)

    options: dict[str, Any] = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    deployment = serve.deployment(
        name=NAME,
        num_replicas=config.num_replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        ray_actor_options=options,
    )(serve.ingress(build)())
    return deployment.bind()
