"""A terminal shows an evaluation in one row for each measure, however many figures that has."""

from dataclasses import replace

from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.scores import RetrievalScore
from ray_jobs.evaluate import score_table
from tests.helpers.encoders import example_scores

RANKS = {"recall@1": 0.04, "recall@5": 0.267, "recall@10": 0.44, "median_rank": 13.0}


def test_a_measure_is_one_row_of_its_main_figure():
    found = example_scores(0.88).found
    ranks = {name: Figure(value, value, value) for name, value in RANKS.items()}
    retrieval = RetrievalScore(ranks, dict.fromkeys(RANKS, 0.067), 75)
    for networks in found.modalities.values():
        for network in networks.values():
            for measure in network.measures.values():
                assert isinstance(measure.figures, dict)
                measure.figures["top5"] = Figure(1.0)
    found = replace(
        found,
        gains={"video/linear": Figure(0.68, 0.5, 0.8), "video/linear/top5": Figure(0.0)},
        retrieval={"video_to_audio": {"trained": retrieval, "untrained": retrieval}},
    )
    header, *rows = score_table(found).splitlines()
    assert header.split("  ")[1] == "held-out score"
    assert [" ".join(row.split()) for row in rows] == [
        "video, nearest neighbors top-1 44.0% 10.0% 25.0%",
        "video, linear probe top-1 88.0% 83.0% to 93.0% 20.0% +68.0 [50.0, 80.0] 25.0%",
        "audio, nearest neighbors top-1 44.0% 10.0% 25.0%",
        "audio, linear probe top-1 88.0% 83.0% to 93.0% 20.0% 25.0%",
        "video to audio, recall@5 26.7% 26.7% to 26.7% 26.7% 6.7%",
        "all figures, such as top-5 and median rank: scores.json",
        "40 test clips of 40 sources",
    ]


def test_the_choice_on_the_test_clips_has_a_row_beside_the_honest_one():
    found = example_scores(0.88).found
    figures = found.modalities["video"]["trained"].measures["linear"].figures
    assert isinstance(figures, dict)
    figures["top1_chosen_on_test"] = Figure(0.92, 0.85, 0.97)
    rows = [" ".join(row.split()) for row in score_table(found).splitlines()]
    honest = next(i for i, row in enumerate(rows) if row.startswith("video, linear probe top-1 88"))
    assert rows[honest + 1] == (
        "video, linear probe top-1, chosen on the test clips 92.0% 85.0% to 97.0%"
    )
