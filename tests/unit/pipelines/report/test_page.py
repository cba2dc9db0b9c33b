"""A page is written whole or not at all."""

from dataclasses import replace

import pytest

from pipelines.errors import UserError
from pipelines.report.run_page import write_report
from tests.helpers.pages import bare


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
