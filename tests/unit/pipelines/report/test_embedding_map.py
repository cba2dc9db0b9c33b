"""The map names its method, repeats, and shows no clip that is not finite."""

import numpy as np
import pytest

from pipelines.report.embedding_map import map_embeddings
from pipelines.report.run_page import render
from tests.helpers.pages import Page, bare, text_of
from tests.helpers.reports import CLASSES


@pytest.mark.parametrize("num_clips", [3, 29, 30, 200])
def test_the_map_names_its_method_and_repeats(num_clips):
    labels = [CLASSES[i % 3] for i in range(num_clips)]
    features = np.random.default_rng(1).normal(size=(num_clips, 16))
    first, second = (map_embeddings("video", features, labels) for _ in range(2))
    assert first.method == ("PCA" if num_clips < 30 else "t-SNE")
    assert first.points.shape == (num_clips, 2)
    assert np.array_equal(first.points, second.points)


def test_the_map_of_collapsed_features_is_one_point():
    plane = map_embeddings("video", np.ones((50, 8)), ["a"] * 50)
    assert plane.method == "PCA"
    assert np.allclose(plane.points, plane.points[0])
    Page(render(bare(maps=[plane])))


def test_the_map_leaves_out_what_is_not_finite():
    features = np.random.default_rng(1).normal(size=(40, 8))
    features[5] = np.nan
    plane = map_embeddings("video", features, [str(i) for i in range(40)])
    assert "5" not in plane.labels
    assert map_embeddings("video", features[3:6]) is None
    assert map_embeddings("video", features[4:6]) is None


def test_the_map_takes_a_part_of_many_clips():
    features = np.random.default_rng(1).normal(size=(1200, 2))
    plane = map_embeddings("video", features)
    assert (len(plane.points), plane.num_clips) == (1000, 1200)
    assert "1,000 of 1,200 clips" in text_of(render(bare(maps=[plane])))
