"""Retrieval is exact for heads that agree, and chance for heads that do not."""

import numpy as np
import pytest

from pipelines.evaluation.retrieval import (
    directions,
    ranks,
    recalled,
    recalled_among,
    retrieval_gains,
    retrieval_ranks,
    retrieval_scores,
)

RNG = np.random.default_rng(0)


def heads(num_clips, noise, network="trained"):
    shared = RNG.normal(size=(num_clips, 16))
    return {
        f"{side}/{network}": (shared + noise * RNG.normal(size=shared.shape)).astype(np.float32)
        for side in ("video", "audio")
    }


def test_heads_that_agree_find_every_clip_and_others_guess():
    scores = retrieval_scores(retrieval_ranks(heads(300, 0.0)), (100,))
    assert set(scores) == {"audio_to_video", "video_to_audio"}
    for one in scores.values():
        assert one["trained"].figures["recall@1"].value == 1.0
        assert one["trained"].figures["recall@10/100"].value == pytest.approx(1.0)
        assert one["trained"].figures["median_rank"].value == 1.0
    strangers = retrieval_scores(retrieval_ranks(heads(300, 1e3)), (100, 300, 1000))
    trained = strangers["audio_to_video"]["trained"]
    for name in ("recall@1", "recall@5", "recall@10", "recall@5/100"):
        found = trained.figures[name]
        assert found.low <= trained.chance[name] <= found.high
    assert trained.figures["median_rank"].value == pytest.approx(150, abs=35)
    assert trained.num_clips == 300
    assert not [name for name in trained.figures if name.endswith(("/300", "/1000"))]


def test_ranks_count_better_clips_and_half_of_those_alike():
    asked = np.eye(3)
    found = np.array([[1.0, 0, 0], [1.0, 1.0, 0], [0, 0, 0]])
    assert ranks(asked, found).tolist() == [1.5, 1.0, 2.0]


def test_outputs_that_are_all_alike_are_chance_and_no_success():
    """A collapsed network gives every clip the same output: no clip is found first."""
    alike = {f"{side}/trained": np.ones((40, 8), np.float32) for side in ("video", "audio")}
    trained = retrieval_scores(retrieval_ranks(alike), ())["audio_to_video"]["trained"]
    assert trained.figures["recall@10"].value == 0.0
    assert trained.figures["median_rank"].value == 20.5


def test_a_smaller_gallery_is_what_drawing_it_many_times_gives():
    asked, found = (directions(array) for array in heads(60, 1.0).values())
    rank = ranks(asked, found)
    drawn = []
    for _ in range(300):
        chosen = np.sort(RNG.choice(60, 20, replace=False))
        drawn.append(recalled(ranks(asked[chosen], found[chosen]), 5).mean())
    assert recalled_among(rank, 5, 20).mean() == pytest.approx(np.mean(drawn), abs=0.03)


def test_the_gain_over_the_untrained_network_is_paired():
    both = heads(200, 0.1) | heads(200, 100.0, "untrained")
    gains = retrieval_gains(retrieval_ranks(both))
    assert gains["audio_to_video/recall@5"].is_above_zero
    assert gains["video_to_audio/recall@1"].is_above_zero
    assert retrieval_gains(retrieval_ranks(heads(200, 0.1))) == {}


@pytest.mark.parametrize("num_clips", [0, 1])
def test_a_single_clip_cannot_be_looked_for(num_clips):
    assert retrieval_ranks(heads(num_clips, 0.1)) == {}
