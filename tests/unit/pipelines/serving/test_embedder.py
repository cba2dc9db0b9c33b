"""Files of many requests meet in one batch; nobody's file waits for another's embedding.

The batches of Ray Serve need a replica around them, so another batcher has their part here.
"""

import asyncio

import mlflow
import numpy as np
import pytest

from pipelines.config.serve import ServeConfig
from pipelines.registry.uri import resolve_model
from pipelines.serving.embedder import Embedder
from pipelines.serving.refusal import RefusedError
from pipelines.tracking.server import tracking_uri
from tests.helpers.encoders import registered_encoder, write_media

MAX_BATCH_SIZE = 2


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    yield registered_encoder(tmp_path_factory.mktemp("home"))
    mlflow.set_tracking_uri(None)


class Gathering(Embedder):
    """Answers when so many segments have come; never with None, and each alone with 1."""

    def __init__(self, tracking, size, **settings):
        # Not validated, which would ask for the packages of Ray Serve.
        config = ServeConfig.model_construct(
            model="xkd-video@champion",
            tracking=tracking,
            num_decoders=1,
            max_batch_size=MAX_BATCH_SIZE,
            **settings,
        )
        self.size = size
        self.arrays = []
        version = resolve_model(config.uri, tracking)
        super().__init__(config, version, tracking_uri(tracking))

    def _make_batched(self):
        futures = []

        async def batched(array):
            self.arrays.append(array)
            if self.size == 1:
                return self._predict([array])[0]
            futures.append(asyncio.get_running_loop().create_future())
            mine = futures[-1]
            if len(futures) == self.size:
                for future, found in zip(futures, self._predict(self.arrays), strict=True):
                    future.set_result(found)
            return await mine

        return batched


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [write_media(folder / f"{n}.mkv", seconds=1.25, seed=n) for n in range(4)]


def test_one_decoder_gathers_the_segments_of_many_files(tracking, films):
    embedder = Gathering(tracking, len(films))

    async def embed_all():
        media = [film.read_bytes() for film in films]
        return await asyncio.wait_for(asyncio.gather(*map(embedder.embed, media)), 60)

    found = asyncio.run(embed_all())
    mlflow.set_tracking_uri(tracking.uri)
    model = mlflow.pyfunc.load_model("models:/xkd-video@champion")
    expected = model.predict({"path": [str(film) for film in films]})
    np.testing.assert_allclose([one.embedding for one in found], expected, atol=1e-5)
    assert [one.num_segments for one in found] == [1] * len(films)


def test_a_long_file_waits_for_the_encoder_and_its_decoder_is_free_once_nobody_does(
    tracking, films, tmp_path
):
    embedder = Gathering(tracking, None)
    long = write_media(tmp_path / "long.mkv", seconds=60.0).read_bytes()

    async def leave():
        request = asyncio.create_task(embedder.embed(long))
        while len(embedder.arrays) < 3 * MAX_BATCH_SIZE:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert len(embedder.arrays) == 3 * MAX_BATCH_SIZE  # memory is bounded
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        embedder.size = 1
        return await embedder.embed(films[0].read_bytes())

    found = asyncio.run(asyncio.wait_for(leave(), 60))
    assert found.num_segments == 1


def test_an_encoder_that_fails_ends_the_request_at_once(tracking, tmp_path):
    embedder = Gathering(tracking, 1)
    embedder._predict = lambda _arrays: 1 / 0
    long = write_media(tmp_path / "long.mkv", seconds=60.0).read_bytes()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(asyncio.wait_for(embedder.embed(long), 60))
    assert len(embedder.arrays) <= 3 * MAX_BATCH_SIZE


def test_a_request_ends_in_time_although_the_encoder_does_not_answer(tracking, tmp_path):
    embedder = Gathering(tracking, None, max_request_seconds=2.0)
    long = write_media(tmp_path / "long.mkv", seconds=60.0).read_bytes()
    with pytest.raises(RefusedError, match="takes longer than max_request_seconds"):
        asyncio.run(asyncio.wait_for(embedder.embed(long), 60))
