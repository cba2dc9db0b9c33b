"""The page of a sweep says what was found and how sure it is, and believes no text."""

import re
from dataclasses import replace

import pytest

from pipelines.report.sweep_page import render_sweep, write_sweep_report
from pipelines.sweep.sweep import SweepResult
from pipelines.sweep.trial_files import Trial
from pipelines.sweep.winner import write_winner
from ray_jobs.sweep import _trial_table
from tests.helpers.pages import Page, section, text_of
from tests.helpers.sweeps import example_record

SECTIONS = ["time", "against", "importance", "options", "front", "trials", "winner", "settings"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return example_record(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def page(record):
    return render_sweep(record)


def test_the_page_has_all_sections_and_loads_nothing(page):
    found = Page(page)
    assert set(SECTIONS) <= set(found.ids)
    assert found.unnamed_images == 0
    assert all(link.startswith("#") for link in found.links)
    assert "script" not in found.tags
    assert "default-src 'none'" in page
    assert len(page) < 1e6


def test_it_says_what_is_best_and_how_sure_that_is(record, page):
    head = text_of(section(page, "head"))
    assert f"The best of 14 trials is {record.result.best.name}" in head
    assert "within two standard errors of the best" in head
    assert "chosen by its score on the split test" in head
    assert "untrained" in head


def test_each_setting_has_its_drawing(page):
    assert section(page, "against").count("<svg") == 4
    assert "Searched only if objective.refinement is mean" in section(page, "against")
    assert section(page, "time").count("<svg") == 3
    assert section(page, "front").count("<svg") == 1


def test_every_trial_is_in_the_table_with_its_end(page):
    rows = re.findall(r"<tr[ >].*?</tr>", section(page, "trials"), re.DOTALL)[1:]
    assert len(rows) == 14
    text = text_of(section(page, "trials"))
    assert "failed, &lt;b&gt;step 3&lt;/b&gt; is not finite" in text
    assert "stopped, at rung 1 of 4 by asha" in text
    assert "collapsed, at rung 2: video effective rank" in text


def test_importance_says_how_it_was_computed(page):
    text = text_of(section(page, "importance"))
    assert "functional ANOVA over a random forest (Optuna, seed 0) fitted to 12 trials" in text
    assert "rung 1 of 4" in text
    assert "this is only a hint" in text


def test_a_best_trial_that_had_collapsed_is_marked_everywhere(record):
    reason = "but had collapsed: video features are alike"
    best = replace(record.result.best, reason=reason)
    trials = tuple(best if t.number == best.number else t for t in record.result.trials)
    result = SweepResult(record.result.folder, trials, best)
    page = render_sweep(replace(record, result=result))
    assert f"{best.name} completed, {reason}." in text_of(section(page, "head"))
    assert f"completed, {reason}" in text_of(section(page, "trials"))
    assert f"# Warning: it completed, {reason}" in write_winner(record.config, result).read_text()
    write_winner(record.config, record.result)
    rows = _trial_table(record.config, trials).splitlines()
    assert sum("completed, collapsed" in row for row in rows) == 1


def test_hostile_text_and_passwords_stay_text(record):
    hostile = "<script>alert(1)</script>{{ 7 * 7 }}\u202e"
    trials = (*record.result.trials, Trial(99, {}, (), "failed", hostile))
    page = render_sweep(
        replace(record, result=replace(record.result, trials=trials), test_split=hostile)
    )
    assert "script" not in Page(page).tags
    assert "{{ 7 * 7 }}" in page
    assert "\u202e" not in page
    assert "secret" not in page


def test_a_grid_of_bundles_over_seeds_is_compared(tmp_path):
    record = example_record(
        tmp_path,
        space={
            "objective.distillation_weight": {"choice": [0.0, 0.5]},
            "ablation": {"bundles": {"all": {}, "no_refinement": {"objective.refinement": "none"}}},
            "seed": {"choice": [0, 1, 2]},
        },
        search={"kind": "grid"},
        stopping={"kind": "none"},
    )
    page = render_sweep(record)
    assert "no_refinement" in section(page, "options")
    assert "looks better than it is" not in page
    Page(page)


def test_a_page_is_written_whole(record, tmp_path):
    path = write_sweep_report(tmp_path / "deep" / "report.html", record)
    assert path.read_text().rstrip().endswith("</html>")
