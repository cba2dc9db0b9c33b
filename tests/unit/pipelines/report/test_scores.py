"""Scores are compared with their errors, classes folded where they are many."""

from dataclasses import replace

import numpy as np

from pipelines.report.embedding_map import map_embeddings
from pipelines.report.run_data import Score
from pipelines.report.run_page import render
from tests.helpers.pages import Page, bare, section
from tests.helpers.reports import example


def test_a_difference_within_the_error_is_not_called_a_gain():
    clear = Score("video", "linear", 0.8, 0.4, num_test=100)
    page = render(bare(scores=[clear, Score("audio", "linear", 0.52, 0.5, num_test=100)]))
    assert "better than untrained ones on 1 of 2 measures" in page
    assert section(page, "scores").count('class="gain"') == 1
    worse = render(bare(scores=[Score("video", "linear", 0.2, 0.6, num_test=100)]))
    assert "on 0 of 1 measure." in worse
    assert 'class="loss"' in section(worse, "scores")


def test_many_classes_are_folded():
    classes = [f"class number {i} with a long name" for i in range(101)]
    page = render(replace(example(classes=classes, num_clips=202), metrics={}))
    Page(page)
    assert "77 more classes" in page
    assert "Only the 16 most frequent classes" in page
    assert section(page, "maps").count("<li") == 17


def test_absent_classes_and_no_baseline_are_said():
    score = Score("video", "linear", 0.7, trained_by_class=[1.0, np.nan, 0.4])
    page = render(bare(classes=["a", "b", "c"], scores=[score]))
    Page(page)
    assert "1 class has no held-out clip" in page
    assert "not measured" in section(page, "scores")


def test_one_class_and_no_labels():
    Page(render(replace(example(classes=["only"], num_clips=40), metrics={})))
    features = np.random.default_rng(0).normal(size=(40, 8))
    page = render(bare(maps=[map_embeddings("audio", features)]))
    assert "The clips have no labels" in section(page, "maps")
