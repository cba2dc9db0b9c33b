import hashlib
import os

import pytest

from pipelines.config.ingest import IngestSettings
from pipelines.errors import UserError
from pipelines.files import write_json
from pipelines.ingest.plan import Changes, make_plan
from pipelines.ingest.state import check_same, fixed_settings, reasons_of_raised_limits
from pipelines.ingest.unit import Unit
from pipelines.ingest.unit_shards import StoredSource, StoredUnits
from pipelines.sources.source import Fingerprint, Source, SourceList

NOTHING = StoredUnits()


def source(name, **changes):
    values = {"label": None, "split": None, "group": None}
    return Source(f"/in/{name}", f"/in/{name}", **(values | changes))


def plan(names, **how):
    """The units for sources whose bytes are their name unless other hashes are given."""
    return whole_plan(names, **how).units


def whole_plan(names, *, hashes=None, done=NOTHING, settings=None, byte_size=10, **changes):
    listed = SourceList("/in", [source(name, **changes) for name in names])
    hashed = {name: hashlib.sha256(name.encode()).hexdigest() for name in names} | (hashes or {})
    fingerprints = [
        Fingerprint(hashed[name], byte_size=byte_size)
        if hashed[name]
        else Fingerprint(None, "unreadable", "gone")
        for name in names
    ]
    return make_plan(listed, fingerprints, done, settings or IngestSettings())


def planned(units):
    return [source for unit in units for source in unit.sources]


def finished(units, undecodable=()):
    """What the shards hold when these units are complete."""
    accepted, rejected = {}, {}
    for unit in units:
        for source in unit.sources:
            reason, message = source.reason, source.message
            if os.path.basename(source.uri) in undecodable:
                reason, message = "undecodable", "no frame"
            shard = f"{unit.name}.parquet"
            held = StoredSource(
                shard,
                source.uri,
                source.source_hash,
                source.tags,
                reason,
                message,
                stretch=source.stretch,
            )
            if reason:
                rejected[source.uri] = held
            else:
                accepted[source.source_hash] = held
    return StoredUnits(frozenset(f"{unit.name}.parquet" for unit in units), accepted, rejected)


NAMES = [f"{number:03}.mp4" for number in range(100)]


def moved_hashes(names):
    """The hashes of the same bytes in another folder."""
    return {f"moved/{name}": hashlib.sha256(name.encode()).hexdigest() for name in names}


def test_each_source_is_in_one_unit(tmp_path):
    units = plan(NAMES, settings=IngestSettings(sources_per_shard=8))
    assert sorted(source.uri for source in planned(units)) == [f"/in/{name}" for name in NAMES]
    assert max(len(unit.sources) for unit in units) == 8
    assert len({unit.name for unit in units}) == len(units)


def test_neighbours_in_a_folder_are_spread_over_the_shards():
    first = {
        os.path.basename(source.uri) for source in plan([f"{n}" for n in range(400)])[0].sources
    }
    assert max(int(name) for name in first) > 200


def test_a_few_sources_become_several_units():
    assert len(plan(NAMES[:16])) == 8
    assert len(plan(NAMES[:3])) == 3


def test_large_sources_fill_a_unit_alone():
    assert {len(unit.sources) for unit in plan(NAMES, byte_size=300_000_000)} == {1}


def test_units_are_named_by_content_wherever_the_sources_lie():
    names = {f"{unit.name}": [s.source_hash for s in unit.sources] for unit in plan(NAMES)}
    elsewhere = plan([f"moved/{name}" for name in NAMES], hashes=moved_hashes(NAMES))
    assert {unit.name: [s.source_hash for s in unit.sources] for unit in elsewhere} == names


def test_units_of_unreadable_sources_have_names_of_their_own():
    names = [f"{number}.mp4" for number in range(40)]
    units = plan(names, hashes=dict.fromkeys(names))
    assert len({unit.name for unit in units}) == len(units) == 8
    assert plan(names, hashes=dict.fromkeys(names), done=finished(units[1:])) == units[:1]


def test_complete_units_are_left_out_and_the_others_keep_their_names():
    units = plan(NAMES)
    rest = plan(NAMES, done=finished(units[:2]))
    assert rest == units[2:]
    assert whole_plan(NAMES, done=finished(units[:2])).changes == Changes(new=74)
    assert plan(NAMES, done=finished(units)) == []


def test_new_sources_are_added_to_what_is_complete():
    done = finished(plan(NAMES[:60]))
    assert sorted(source.uri for source in planned(plan(NAMES, done=done))) == [
        f"/in/{name}" for name in NAMES[60:]
    ]


def test_the_same_bytes_twice_are_a_duplicate_of_the_first():
    hashes = {"a.mp4": "same", "b.mp4": "same", "c.mp4": "same"}
    sources = {s.uri: s for s in planned(plan(list(hashes), hashes=hashes))}
    assert sources["/in/a.mp4"].reason is None
    for name in ("/in/b.mp4", "/in/c.mp4"):
        assert sources[name].reason == "duplicate"
        assert sources[name].message == "same bytes as /in/a.mp4"


def test_a_copy_that_comes_later_and_sorts_first_is_the_duplicate():
    done = finished(plan(["b.mp4"], hashes={"b.mp4": "same"}))
    hashes = {"a.mp4": "same", "b.mp4": "same"}
    (copy,) = planned(plan(["a.mp4", "b.mp4"], hashes=hashes, done=done))
    assert (copy.uri, copy.reason) == ("/in/a.mp4", "duplicate")


def test_a_renamed_source_keeps_its_rows_under_its_new_name():
    units = plan(["old.mp4"], hashes={"old.mp4": "same"})
    after = whole_plan(["new.mp4"], hashes={"new.mp4": "same"}, done=finished(units))
    assert after.units == []
    (revision,) = after.revisions.values()
    assert revision == {
        ("/in/old.mp4", "same"): {
            "source": "/in/new.mp4",
            "label": None,
            "labels": [],
            "split": planned(units)[0].split,
            "group": None,
        }
    }
    assert after.changes == Changes(renamed=1)


def test_another_label_is_written_without_decoding():
    units = plan(["a.mp4", "b.mp4"], label="cat")
    after = whole_plan(["a.mp4", "b.mp4"], label="dog", done=finished(units))
    assert after.units == []
    assert {values["label"] for r in after.revisions.values() for values in r.values()} == {"dog"}
    assert after.changes == Changes(renamed=2)


def test_a_source_that_changed_is_taken_out_and_done_again():
    units = plan(["a.mp4", "b.mp4"], hashes={"a.mp4": "before"})
    after = whole_plan(["a.mp4", "b.mp4"], hashes={"a.mp4": "after"}, done=finished(units))
    assert [source.uri for source in planned(after.units)] == ["/in/a.mp4"]
    assert after.revisions == {f"{units[0].name}.parquet": {("/in/a.mp4", "before"): None}} or (
        after.revisions == {f"{units[1].name}.parquet": {("/in/a.mp4", "before"): None}}
    )
    assert after.changes == Changes(changed=1)


def test_another_stretch_of_the_same_bytes_is_done_again():
    names = ["a.mp4", "b.mp4"]
    done = finished(plan(names, start_seconds=0.0, end_seconds=5000.0), undecodable=["b.mp4"])
    same = whole_plan(names, start_seconds=0.0, end_seconds=5000.0, done=done)
    assert (same.units, same.revisions, same.changes) == ([], {}, Changes())
    after = whole_plan(names, start_seconds=0.0, end_seconds=5.0, done=done)
    assert sorted(source.uri for source in planned(after.units)) == ["/in/a.mp4", "/in/b.mp4"]
    assert {value for r in after.revisions.values() for value in r.values()} == {None}
    assert after.changes == Changes(changed=2)


def test_sources_that_went_are_taken_out_unless_they_are_to_be_kept():
    done = finished(plan(["a.mp4", "b.mp4", "c.mp4"]), undecodable=["c.mp4"])
    after = whole_plan(["b.mp4"], done=done)
    assert after.units == []
    assert {key[0] for r in after.revisions.values() for key in r} == {"/in/a.mp4", "/in/c.mp4"}
    assert after.changes == Changes(removed=2)
    kept = whole_plan(["b.mp4"], done=done, settings=IngestSettings(keep_removed=True))
    assert (kept.units, kept.revisions, kept.changes) == ([], {}, Changes())


def test_what_could_not_be_read_is_tried_again_when_it_can():
    done = finished(plan(["a.mp4"], hashes={"a.mp4": None}))
    assert done.rejected["/in/a.mp4"].reason == "unreadable"
    still = whole_plan(["a.mp4"], hashes={"a.mp4": None}, done=done)
    assert (still.units, still.revisions, still.changes) == ([], {}, Changes())
    after = whole_plan(["a.mp4"], done=done)
    assert [source.uri for source in planned(after.units)] == ["/in/a.mp4"]
    assert list(after.revisions.values()) == [{("/in/a.mp4", None): None}]
    assert after.changes == Changes(changed=1)


def test_what_cannot_be_read_any_more_keeps_its_rows():
    done = finished(plan(["a.mp4"]))
    after = whole_plan(["a.mp4"], hashes={"a.mp4": None}, done=done)
    assert (after.units, after.revisions, after.changes) == ([], {}, Changes())


def test_a_reject_of_the_same_bytes_is_not_decoded_again():
    done = finished(plan(["a.mp4"]), undecodable=["a.mp4"])
    assert plan(["a.mp4"], done=done) == []


def test_the_copy_of_a_source_that_went_or_changed_takes_its_place():
    hashes = {"a.mp4": "same", "b.mp4": "same"}
    done = finished(plan(list(hashes), hashes=hashes))
    gone = whole_plan(["b.mp4"], hashes={"b.mp4": "same"}, done=done)
    assert gone.units == []
    revision = {key: values for r in gone.revisions.values() for key, values in r.items()}
    assert revision[("/in/a.mp4", "same")]["source"] == "/in/b.mp4"
    assert revision[("/in/b.mp4", "same")] is None
    changed = whole_plan(list(hashes), hashes=hashes | {"a.mp4": "other"}, done=done)
    assert [(source.uri, source.reason) for source in planned(changed.units)] == [
        ("/in/a.mp4", None)
    ]
    assert changed.changes == Changes(changed=1, renamed=1)


def test_a_unit_never_takes_the_name_of_a_shard_that_is_there():
    (unit,) = plan(["a.mp4"])
    moved = finished([unit])
    (held,) = moved.accepted.values()
    # Its only source was renamed, and then a copy came back under the old name.
    held = StoredSource(held.shard, "/in/b.mp4", held.source_hash, held.tags)
    hashes = {"a.mp4": held.source_hash, "b.mp4": held.source_hash}
    done = StoredUnits(moved.shards, {held.source_hash: held}, {})
    (again,) = plan(["a.mp4", "b.mp4"], hashes=hashes, done=done)
    assert [source.reason for source in again.sources] == ["duplicate"]
    assert again.name != unit.name


def test_splits_follow_the_content_and_groups_stay_together():
    settings = IngestSettings(heldout_fraction=0.3)
    names = [f"{number}" for number in range(300)]
    split = {s.uri: s.split for s in planned(plan(names, settings=settings))}
    more = {s.uri: s.split for s in planned(plan([*names, "x"], settings=settings))}
    assert split.items() <= more.items()
    assert 60 < list(split.values()).count("test") < 120
    assert {s.split for s in planned(plan(names, settings=settings, group="g"))} in (
        {"train"},
        {"test"},
    )


def test_given_splits_are_kept_and_none_is_drawn():
    listed = SourceList("/in", [source("a", split="val"), source("b")])
    whole = make_plan(listed, [Fingerprint("1"), Fingerprint("2")], NOTHING, IngestSettings())
    assert {s.uri: s.split for s in planned(whole.units)} == {"/in/a": "val", "/in/b": None}


def test_rejects_of_the_reasons_named_are_tried_again():
    names = ["a.mp4", "b.mp4"]
    done = finished(plan(names), undecodable={"b.mp4"})
    assert plan(names, done=done) == []
    (unit,) = plan(names, done=done, settings=IngestSettings(retry_rejects=["undecodable"]))
    assert [source.uri for source in unit.sources] == ["/in/b.mp4"]
    settings = IngestSettings(retry_rejects=["decoder_crashed"])
    assert plan(names, done=done, settings=settings) == []
    with pytest.raises(ValueError, match=r"\(undecodeable\) must be reasons: unreadable, "):
        IngestSettings(retry_rejects=["undecodeable"])


def test_a_unit_survives_json():
    (unit, *_) = plan(["\u00e9.mp4", "b.mp4"])
    assert Unit.from_json(unit.to_json()) == unit
    (unit,) = plan(
        ["a.mp4"], byte_size=0, labels=("a", "b"), start_seconds=0.0, end_seconds=10.0, group="g"
    )
    assert Unit.from_json(unit.to_json()) == unit


def test_only_an_empty_folder_or_the_same_dataset_is_taken(tmp_path):
    settings = IngestSettings()
    check_same(tmp_path / "nowhere", "/in", settings)
    check_same(tmp_path, "/in", settings)
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UserError, match=r"must be empty or a clip dataset, but holds thesis\.doc"):
        check_same(tmp_path, "/in", settings)
    (tmp_path / ".ingest").mkdir()
    state = {"input": "/in", "settings": fixed_settings(settings)}
    write_json(tmp_path / ".ingest/settings.json", state)
    check_same(tmp_path, "/in", settings)
    check_same(tmp_path, None, settings)
    check_same(tmp_path, "/in", IngestSettings(num_workers=7, max_reject_fraction=0.1))
    write_json(tmp_path / ".ingest/settings.json", state | {"format_version": 99})
    with pytest.raises(UserError, match=r"format_version 99, but must have 1: .* newer XKD"):
        check_same(tmp_path, "/in", settings)
    write_json(tmp_path / ".ingest/settings.json", state)
    with pytest.raises(UserError, match="input is /in there and /other here"):
        check_same(tmp_path, "/other", settings)
    raised = IngestSettings(limits={"max_pixels": 10**9, "max_seconds": 10**6})
    before = check_same(tmp_path, "/in", raised)
    assert reasons_of_raised_limits(before, raised) == {"too_many_pixels", "too_long"}
    assert reasons_of_raised_limits(before, settings) == set()
    other = IngestSettings(frame_rate=16, limits={"max_pixels": 5})
    with pytest.raises(UserError, match=r"frame_rate is 8.0 there and 16.0 here; limits.max_pix"):
        check_same(tmp_path, "/in", other)
