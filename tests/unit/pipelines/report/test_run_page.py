"""The report never breaks, leaves a box empty, loads anything or believes a file name."""

import html
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.report.embedding_map import map_embeddings
from pipelines.report.run_data import (
    Attention,
    IngestCounts,
    Neighbor,
    Reconstruction,
    RegisteredModel,
    Reject,
    ReportData,
    Retrieval,
    Score,
)
from pipelines.report.run_page import render, write_report
from pipelines.report.run_report import _notes
from tests.helpers.pages import Page, bare, section, text_of
from tests.helpers.reports import STEPS, example, frames_of, spectrogram_of

SECTIONS = [
    "data",
    "losses",
    "schedules",
    "health",
    "speed",
    "scores",
    "reconstructions",
    "attention",
    "maps",
    "neighbors",
    "models",
    "settings",
    "provenance",
]


@pytest.fixture(scope="module")
def data():
    return example()


@pytest.fixture(scope="module")
def page(data):
    return render(data)


def test_tags_nest_and_every_image_has_a_name(page):
    found = Page(page)
    assert found.unnamed_images == 0
    assert set(SECTIONS) <= set(found.ids)


def test_the_page_loads_nothing_and_runs_nothing(page):
    found = Page(page)
    assert all(link.startswith(("#", "data:image/")) for link in found.links)
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(found.tags)
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_drawings_take_their_colors_from_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) > 20
    assert not re.search(r"#0[1-5]0[1-5][0-9a-f]{2}", "".join(drawings))


def test_the_page_stays_small(page):
    assert len(page) < 4e6


def test_the_same_data_gives_the_same_page(data, page):
    assert render(data) == page


def test_a_hostile_name_is_text(tmp_path):
    hostile = "<script>alert(1)</script>\"'\u202egpj.4pm\x00\ud800{{ 7 * 7 }}"
    counts = IngestCounts(
        1, 0, 1, 0, rejects_by_reason={hostile: 1}, examples=[Reject(hostile, hostile, hostile)]
    )
    clip = Neighbor(frames_of(0, 1)[0], hostile)
    data = ReportData(
        name=hostile,
        created=hostile,
        warnings=[hostile],
        ingest=counts,
        metrics={f"loss/{hostile}": (STEPS, STEPS), hostile: (STEPS, STEPS)},
        classes=[hostile],
        scores=[Score(hostile, hostile, 0.5, trained_by_class=[0.5])],
        reconstructions=[Reconstruction(hostile)],
        attention=[Attention(hostile)],
        maps=[map_embeddings("video", np.eye(4), [hostile] * 4)],
        retrievals=[Retrieval("audio_to_video", clip, [clip])],
        registered=[RegisteredModel(hostile, hostile, hostile, True, hostile)],
        tracking_uri=hostile,
        settings=hostile,
        provenance={hostile: hostile},
        notes=dict.fromkeys(SECTIONS, hostile),
    )
    text = write_report(tmp_path / "report.html", data).read_text("utf-8")
    found = Page(text)
    assert "script" not in found.tags
    assert all(link.startswith(("#", "data:image/")) for link in found.links)
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "{{ 7 * 7 }}" in text


def test_passwords_stay_out(page):
    assert "secret" not in page
    settings = "tracking:\n  uri: postgresql://me:secret@db/x"
    assert "secret" not in render(bare(settings=settings))


def test_an_empty_section_says_why():
    page = render(bare())
    for name in SECTIONS:
        assert 'class="none' in section(page, name), name
        assert len(text_of(section(page, name))) > 40, name
    Page(page)


def test_a_note_takes_the_place_of_the_common_reason():
    page = render(bare(notes={"scores": "All clips have one class."}))
    assert "All clips have one class." in section(page, "scores")
    assert "the clips have no labels" not in section(page, "scores")


def test_sources_are_accounted_for(page):
    assert "302 sources = 299 accepted + 3 rejected" in text_of(section(page, "data"))
    wrong = bare(ingest=IngestCounts(sources=5, accepted=3, rejected=1, clips=3))
    assert "does not add up" in render(wrong)


def test_no_rejects_is_said():
    page = render(bare(ingest=IngestCounts(sources=3, accepted=3, rejected=0, clips=3)))
    assert "No source was rejected" in section(page, "data")
    assert "<table" not in section(page, "data")


def test_only_the_first_rejects_of_a_reason_are_named():
    rejects = [Reject(f"file-{i}.mp4", "too_short", "short") for i in range(50)]
    counts = IngestCounts(50, 0, 50, 0, rejects_by_reason={"too_short": 50}, examples=rejects)
    text = text_of(section(render(bare(ingest=counts)), "data"))
    assert "8 of 50 shown" in text
    assert "file-8.mp4" not in text


def test_a_clip_with_one_side_says_which_lacks():
    sound, hidden = spectrogram_of(0), np.ones((20, 14), dtype=bool)
    item = Reconstruction(
        "t", spectrogram=sound, spectrogram_hidden=hidden, spectrogram_filled=sound
    )
    page = render(
        bare(
            reconstructions=[item],
            attention=[Attention("t", spectrogram=sound, spectrogram_attention=np.zeros((20, 14)))],
        )
    )
    Page(page)
    assert "the clip has no video" in section(page, "reconstructions")


def test_neighbors_are_marked_right_and_wrong(page):
    shown = section(page, "neighbors")
    assert shown.count('class="own"') == 6
    assert shown.count('class="right"') == 12
    assert shown.count('class="wrong"') == 12


def test_the_code_line_names_the_alias_only_if_it_was_moved(page):
    models = section(page, "models").replace("&#34;", '"')
    assert '"models:/xkd-video@champion"' in models
    assert '"models:/xkd-audio/2"' in models


def test_both_modalities_share_a_chart_of_health_with_its_meaning(page):
    health = section(page, "health")
    assert health.count("<figure") == 8
    assert health.count("Bad") == 8
    assert "video 40" in text_of(health)


def test_sources_that_gave_less_than_they_declare_are_counted():
    flaws = ["sources that declare sound and gave none: 2", "sources that are damaged in part: 1"]
    remarks = ["pictures timed by the order of frames: 3 sources"]
    counts = IngestCounts(9, 9, 0, clips=9, flaws=flaws, remarks=remarks)
    page = render(bare(ingest=counts))
    assert f"Flaws of accepted sources: {'; '.join(flaws)}." in text_of(page)
    assert "Pictures timed by the order of frames: 3 sources." in text_of(page)


def test_recall_stands_beside_chance_above_each_gallery(page):
    shown = html.unescape(text_of(section(page, "neighbors"))).replace("\u00a0", " ")
    assert "the own one is first for 24.0 % (by chance 1.3 %, untrained 2.0 %)." in shown
    assert "the own one is first for 1.0 % (by chance 1.3 %, untrained 2.0 %)." in shown


def test_models_and_provenance_say_what_training_began_from():
    training = SimpleNamespace(
        began_from={"video": {"source": "models:/xkd-video/3", "content": "ab" * 32}},
        run=None,
    )
    scores = SimpleNamespace(found=SimpleNamespace(reason=""))
    record = SimpleNamespace(training=training, evaluation=SimpleNamespace(scores=scores))
    notes = _notes(record)
    registered = [RegisteredModel("xkd-video", "4")]
    text = text_of(section(render(bare(notes=notes, registered=registered)), "models"))
    assert "video from models:/xkd-video/3, content abababababab" in text
    record.training.began_from = {}
    assert _notes(record) == {}


def test_every_figure_of_an_incomplete_split_is_marked(data):
    page = render(replace(data, marks=("27 of 30 test sources", "dataset <b>, not a")))
    sentence = (
        "not the figures of the whole official split: 27 of 30 test sources; dataset &lt;b&gt;"
    )
    assert sentence in text_of(section(page, "head"))
    assert sentence in text_of(section(page, "scores"))
    assert sentence in text_of(section(page, "neighbors"))
    for name in ("head", "scores"):
        figures = re.findall(r"<b>[\d.]+\xa0%</b>|<dd>[\d.]+\xa0%", section(page, name))
        marked = re.findall(r"<b>[\d.]+\xa0%</b><abbr|<dd>[\d.]+\xa0%<abbr", section(page, name))
        assert len(figures) == len(marked) > 0
    assert "<abbr" not in render(data)
