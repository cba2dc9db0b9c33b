"""The interface of the service over HTTP, described at /docs and in /openapi.json."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, File, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from pipelines.config.serve import ServeConfig
from pipelines.redaction import one_line
from pipelines.registry.uri import EncoderVersion
from pipelines.serving.embedder import Embedded
from pipelines.serving.fetching import Fetcher
from pipelines.serving.guard import Guard
from pipelines.serving.metrics import Metrics, node_metrics
from pipelines.serving.refusal import RefusedError

logger = logging.getLogger(__name__)

_FORM_BYTES = 65_536
"""What a form adds to an upload."""


class Embeds(Protocol):
    """What embeds a file."""

    version: EncoderVersion

    async def embed(self, media: bytes) -> Embedded:
        """As `Embedder.embed`."""


class UriRequest(BaseModel):
    """A file that the service fetches."""

    uri: str = Field(min_length=1, max_length=4_096, examples=["https://example.com/film.mp4"])


class Embedding(BaseModel):
    """The embedding of a file: the mean over its segments."""

    model: str
    """The version that computed it."""
    embedding: list[float]
    num_segments: int


class Problem(BaseModel):
    """Why a request was not answered, in one line."""

    detail: str


class Health(BaseModel):
    """Which model a replica holds."""

    status: str
    model: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        401: "No token, or a wrong one",
        403: "The URI, or the client, is not allowed",
        408: "The request took too long",
        413: "The file is too large",
        422: "The file cannot be embedded, or the request is malformed",
        503: "Too many requests, or no decoder",
    }.items()
}


def make_app(embedder: Embeds, config: ServeConfig, token_hash: bytes | None) -> FastAPI:
    """Makes the app of a replica.

    Args:
        embedder: Embeds files.
        config: The settings of the service.
        token_hash: Hash of the token that requests must have; None without a token.
    """
    app = FastAPI(title="XKD embeddings", description=f"Embeddings by {embedder.version.uri}.")
    app.add_middleware(
        Guard,
        token_hash=token_hash,
        max_bytes=config.max_upload_bytes + _FORM_BYTES,
        max_seconds=config.max_request_seconds,
    )
    _add_errors(app)
    metrics = Metrics()
    fetcher = Fetcher(config.uris, config.max_upload_bytes)

    async def answer(get_media: Callable[[], Awaitable[bytes]]) -> Embedding:
        with metrics.request():
            media = await get_media()
            if len(media) > config.max_upload_bytes:
                raise RefusedError(413, f"the file has more than {config.max_upload_bytes} bytes")
            begun = time.monotonic()
            found = await embedder.embed(media)
            metrics.embedded(found.num_segments, time.monotonic() - begun)
        return Embedding(
            model=embedder.version.uri,
            embedding=found.embedding.tolist(),
            num_segments=found.num_segments,
        )

    @app.post("/v1/embeddings/file", responses=_PROBLEMS)
    async def embed_file(file: Annotated[UploadFile, File()]) -> Embedding:
        """Embeds an upload: `curl -F file=@film.mp4 ADDRESS/v1/embeddings/file`."""
        return await answer(file.read)

    @app.post("/v1/embeddings/uri", responses=_PROBLEMS)
    async def embed_uri(request: UriRequest) -> Embedding:
        """Embeds what a URI gives, if the service allows it."""
        return await answer(lambda: fetcher.fetch(request.uri))

    @app.get("/health")
    async def health() -> Health:
        """Answers if a replica holds the model."""
        return Health(status="ok", model=embedder.version.uri)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_of_nodes() -> str:
        """Metrics of the service and of Ray Serve on all nodes, for Prometheus."""
        return await node_metrics()

    return app


def _add_errors(app: FastAPI) -> None:
    """Answers every error in one line, without a traceback."""

    @app.exception_handler(RefusedError)
    async def refused(_request: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"detail": error.message}, error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"detail": one_line(ValueError(f"{where}: {first['msg']}"))}, 422)

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> JSONResponse:
        logger.error("a request failed", exc_info=error)
        text = f"the service failed with {type(error).__name__}; its log says why"
        return JSONResponse({"detail": text}, 500)
