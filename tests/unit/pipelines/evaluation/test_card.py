"""The card of a suite marks what is not the whole official figure."""

import json
from dataclasses import replace

import pytest

from pipelines.config.evaluate import EvaluateConfig
from pipelines.evaluation.card import CardEntry, card_rows, write_card
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.official import OfficialShare, share_values
from pipelines.evaluation.scores import MeasureScore, RetrievalScore
from pipelines.evaluation.scores_file import read_scores
from pipelines.files import write_json
from tests.helpers.encoders import example_scores

RECALLS = {f"recall@{k}": Figure(0.1 * k, 0.0, 0.2 * k) for k in (1, 5)}


def entry(name, *, missing=0, marks=(), paper=()):
    scores = example_scores(0.5)
    share = OfficialShare("ucf101", (1, 2, 3), 3, 60, 60, 30, 30 - missing)
    video = scores.found.modalities["video"]["trained"]
    svm = MeasureScore({"top1": Figure(0.6, 0.5, 0.7), "top1_chosen_on_test": Figure(0.65)})
    networks = {"trained": replace(video, measures={**video.measures, "svm": svm})}
    found = replace(
        scores.found,
        modalities={"video": networks},
        over_reference={
            "video/linear": Figure(0.02, -0.01, 0.05),
            "audio_to_video/recall@5": Figure(0.04, 0.01, 0.09),
        },
        retrieval={"audio_to_video": {"trained": RetrievalScore(RECALLS, {"recall@5": 0.067}, 75)}},
        notes=("1 of 2 test clips without a label: left out",),
    )
    scores = replace(
        scores,
        found=found,
        official=share_values(share),
        marks=(*share.marks(), *marks),
        reference="models:/xkd-video/3",
    )
    config = EvaluateConfig(checkpoint="/run", dataset="/clips", output="/out", paper=paper)
    return CardEntry(name, config, scores)


PAPER = ({"subject": "video", "measure": "svm", "value": 83.8, "source": "XKD, Table 7"},)


def test_a_card_shows_intervals_published_figures_and_remarks(tmp_path):
    whole, part = entry("whole", paper=PAPER), entry("part", missing=3, marks=("dataset b, not a",))
    file = write_card(tmp_path, "figures", [whole, part])
    text = file.read_text()
    paper = "83.8 % (XKD, Table 7)"
    assert f"| whole | video | linear SVM top-1 | 60.0 % | [50.0, 70.0] | {paper} |" in text
    assert "| part | video | linear SVM top-1 | 60.0 % * | [50.0, 70.0] |" in text
    assert "27 of 30 test sources; dataset b, not a" in text
    assert "ucf101, 27 of 30 official test sources" in text
    assert "+2.0 [-1.0, 5.0]" in text
    recall = "| whole | audio to video | recall@5 | 50.0 % | [0.0, 100.0] |"
    assert f"{recall}  | +4.0 [1.0, 9.0] | 75 |" in text
    assert "compared with `models:/xkd-video/3`" in text
    assert "- whole: 1 of 2 test clips without a label: left out" in text
    values = json.loads((tmp_path / "card.json").read_text())
    assert values["entries"][1]["marks"] == ["27 of 30 test sources", "dataset b, not a"]
    assert values["entries"][0]["figures"]["video/trained/svm"] == [0.6, 0.5, 0.7]


def test_what_the_test_clips_have_chosen_is_marked_on_a_whole_split():
    rows = {row[2]: row for row in card_rows([entry("whole")])[1:]}
    chosen = rows["linear SVM top-1, chosen on the test clips"]
    assert chosen[3] == "65.0 % *"
    assert chosen[-1] == "chosen on the test clips"
    assert rows["linear SVM top-1"][-1] == ""


def test_marks_and_shares_are_part_of_the_scores(tmp_path):
    scores = entry("part", missing=3).scores
    write_json(tmp_path / "scores.json", scores.to_json())
    again = read_scores(tmp_path / "scores.json")
    assert again.marks == ("27 of 30 test sources",)
    assert OfficialShare.from_json(dict(again.official)).present_test == 27
    assert again.found == scores.found
    older = {k: v for k, v in scores.to_json().items() if k not in ("marks", "official")}
    write_json(tmp_path / "scores.json", older)
    assert read_scores(tmp_path / "scores.json").marks == ()


@pytest.mark.parametrize("present", [30, 29])
def test_a_share_is_whole_or_says_what_is_missing(present):
    share = OfficialShare("esc50", (1,), 1, 10, 10, 30, present)
    assert share.is_complete == (present == 30)
