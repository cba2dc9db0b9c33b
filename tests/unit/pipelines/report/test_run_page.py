"""The report never breaks, leaves a box empty, loads anything or believes a file name."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.report.embedding_map import map_embeddings
from pipelines.report.page import render, write_report
from pipelines.report.run_data import (
    Attention,
    IngestCounts,
    Neighbor,
    Reconstruction,
    Registered,
    Reject,
    ReportData,
    Retrieval,
    Score,
)
from tests.helpers.reports import CLASSES, STEPS, example, frames_of, spectrogram_of

VOID = {"img", "meta", "br", "link", "input", "hr"}
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


class Page(HTMLParser):
    """Collects what a page refers to, and fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.tags = [], [], [], []
        self.unnamed_images = 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[k] for k in ("src", "href", "xlink:href", "srcset") if k in values]
        self.unnamed_images += tag == "img" and "alt" not in values
        self.unnamed_images += tag == "svg" and not {"aria-label", "aria-hidden"} & set(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def data():
    return example()


@pytest.fixture(scope="module")
def page(data):
    return render(data)


def bare(**values):
    return ReportData(name="bare", created="today", **values)


def section(page, name):
    return re.search(rf'<(section|header) id="{name}">.*?</\1>', page, re.DOTALL)[0]


def text_of(markup):
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


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
        registered=[Registered(hostile, hostile, hostile, True, hostile)],
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
    assert "No labels were given" not in section(page, "scores")


def test_sources_are_accounted_for(page):
    assert "302 sources = 299 accepted + 3 rejected" in text_of(section(page, "data"))
    wrong = bare(ingest=IngestCounts(sources=5, accepted=3, rejected=1, clips=3))
    assert "does not add up" in render(wrong)


def test_no_rejects_is_said():
    page = render(bare(ingest=IngestCounts(sources=3, accepted=3, rejected=0, clips=3)))
    assert "nothing was rejected" in section(page, "data")
    assert "<table" not in section(page, "data")


def test_only_the_first_rejects_of_a_reason_are_named():
    rejects = [Reject(f"file-{i}.mp4", "too_short", "short") for i in range(50)]
    counts = IngestCounts(50, 0, 50, 0, rejects_by_reason={"too_short": 50}, examples=rejects)
    text = text_of(section(render(bare(ingest=counts)), "data"))
    assert "8 of 50 named" in text
    assert "file-8.mp4" not in text


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [np.nan],
        [np.nan, np.nan, np.nan],
        [1.0, np.nan, 0.5],
        [np.inf, 1.0, -np.inf],
        [1.797e308, 1.0],
        [0.0, 0.0],
        [1e-30, 1e30],
    ],
    ids=str,
)
def test_odd_curves_are_drawn(values):
    curve = (np.arange(len(values)), np.array(values))
    page = render(bare(metrics={"loss/total": curve, "health/video/effective_rank": curve}))
    lost = sum(not abs(value) < 1e300 for value in values)
    Page(page)
    assert ("not finite" in section(page, "losses")) == (lost > 0)
    if lost == len(values):
        assert "no number" in section(page, "losses")


def test_a_curve_without_points_is_left_out():
    page = render(bare(metrics={"loss/total": (np.array([]), np.array([]))}))
    assert 'class="none' in section(page, "losses")


def test_a_long_curve_stays_small_and_keeps_its_spike():
    values = np.ones(100_000)
    values[61_234] = 50.0
    page = render(bare(metrics={"time/step_seconds": (np.arange(100_000), values)}))
    assert len(page) < 200_000
    assert ">50<" in page.replace(" ", "") or ">45<" in page.replace(" ", "")


def test_both_modalities_share_a_chart_of_health_with_its_meaning(page):
    health = section(page, "health")
    assert health.count("<figure") == 8
    assert health.count("Bad") == 8
    assert "video 40" in text_of(health)


def test_a_difference_within_the_error_is_not_called_a_gain():
    clear = Score("video", "linear", 0.8, 0.4, num_test=100)
    page = render(bare(scores=[clear, Score("audio", "linear", 0.52, 0.5, num_test=100)]))
    assert "better than untrained ones on 1 of 2 measures" in page
    assert section(page, "scores").count('class="gain"') == 1
    worse = render(bare(scores=[Score("video", "linear", 0.2, 0.6, num_test=100)]))
    assert "on 0 of 1 measures." in worse
    assert 'class="loss"' in section(worse, "scores")


def test_many_classes_are_folded():
    classes = [f"class number {i} with a long name" for i in range(101)]
    page = render(replace(example(classes=classes, num_clips=202), metrics={}))
    Page(page)
    assert "77 classes between" in page
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
    assert "No labels were given" in section(page, "maps")


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
    assert "the clip has no picture" in section(page, "reconstructions")


def test_neighbors_are_marked_right_and_wrong(page):
    shown = section(page, "neighbors")
    assert shown.count('class="own"') == 6
    assert shown.count('class="right"') == 12
    assert shown.count('class="wrong"') == 12


def test_the_code_line_names_the_alias_only_if_it_was_moved(page):
    models = section(page, "models").replace("&#34;", '"')
    assert '"models:/xkd-video@champion"' in models
    assert '"models:/xkd-audio/2"' in models


def test_a_failed_write_leaves_the_old_report(tmp_path):
    path = write_report(tmp_path / "deep" / "report.html", bare())
    before = path.read_text()
    with pytest.raises(UserError, match=r"page .* cannot be written"):
        write_report(path / "report.html", bare())
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_second_report_replaces_the_first(tmp_path):
    path = write_report(tmp_path / "report.html", bare())
    write_report(path, replace(bare(), name="second"))
    assert "second" in path.read_text()


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
