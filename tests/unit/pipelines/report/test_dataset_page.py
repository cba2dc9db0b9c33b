"""The page of a dataset is one file that trusts nothing, with its lists beside it."""

import csv
import re

import pytest

from pipelines.config.dataset import DatasetSettings
from pipelines.dataset.clip_ids import read_clip_ids
from pipelines.dataset.review import review
from pipelines.report.dataset_page import review_text, write_dataset_page
from tests.helpers.pages import Page
from tests.helpers.reviewed import write_reviewed

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_reviewed(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def found(dataset, local_ray):
    return review(dataset, DatasetSettings(max_shown=4), lambda *_: None)


def test_the_page_is_one_file_that_trusts_nothing(found, tmp_path):
    page = write_dataset_page(tmp_path / "page", found)
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;.mp4" in text
    assert "<b>why" not in text
    assert re.findall(r'(?:src|href)="(?!data:|#)', text) == []
    assert Page(text).unnamed_images == 0
    with open(tmp_path / "page/near_duplicates.csv") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["is_leak"] for row in rows) == ["False", "True"]
    assert read_clip_ids(str(tmp_path / "page/leaks.txt")) == set(found.leaks)
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "dataset.html",
        "duplicates.txt",
        "leaks.txt",
        "near_duplicates.csv",
    ]
    (shown,) = found.rejects["too_short"]
    assert shown.frame is not None
    assert found.rejects["not_media"][0].frame is None


def test_the_words_say_what_to_leave_out(found):
    text = review_text(found)
    assert "8 train, 2 test" in text
    assert "matches by picture, test and train: 1 pair" in text
    assert "to exclude: 1 leak, 1 duplicate" in text
