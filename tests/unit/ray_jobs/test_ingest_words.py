"""What ingest says of its outcome."""

from pipelines.dataset.source_flaws import SourceFlaws
from pipelines.ingest.plan import Changes
from pipelines.ingest.summary import IngestSummary
from ray_jobs.ingest import summary_text


def test_media_that_no_list_names_are_not_called_files_without_media():
    summary = IngestSummary(
        sources=3,
        accepted=2,
        rejected=1,
        rejects_by_reason={"unreadable": 1},
        clips=4,
        new_clips=4,
        media_seconds=20.0,
        flaws=SourceFlaws(without_sound=2, timed_by_order=3),
        dataset_id="0",
        ignored={"not listed": 2},
        notes=["splits are taken from the list: train (3 rows)"],
        changes=Changes(new=3),
    )
    assert summary_text(summary) == (
        "4 clips of 2 sources, 4 new; 3 sources = 2 accepted + 1 rejected (1 unreadable); "
        "files that are not sources: 2 not listed\n"
        "  sources that declare sound and gave none: 2\n"
        "  splits are taken from the list: train (3 rows)"
    )
