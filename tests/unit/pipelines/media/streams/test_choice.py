import pytest

from pipelines.media.streams.choice import Candidate, Choice, choose

PICTURE = {"kind": "video", "codec": "h264", "num_packets": 250, "seconds": 10.0}
SOUND = {"kind": "audio", "codec": "aac", "num_packets": 470, "seconds": 10.0}


def picture(index, **changes):
    return Candidate(index, **(PICTURE | {"num_pixels": 10_000, "num_bytes": 10**5} | changes))


def sound(index, **changes):
    return Candidate(index, **(SOUND | {"num_bytes": 10**5} | changes))


NOT_USED = [
    {"num_packets": 0},
    {"has_decoder": False},
    {"is_encrypted": True},
    {"is_attached": True},
]


@pytest.mark.parametrize("worse", [picture, sound])
@pytest.mark.parametrize("flaw", NOT_USED)
def test_what_gives_nothing_is_not_chosen_even_by_default(worse, flaw):
    bad, good = worse(0, is_default=True, **flaw), worse(1)
    assert choose([bad, good]) in (Choice(1, None), Choice(None, 1))
    assert choose([bad]) == Choice(None, None)


@pytest.mark.parametrize(
    "flaw",
    [
        {"num_packets": 1, "seconds": 0.0},
        {"num_packets": 4, "seconds": 0.06},
        {"seconds": 3.0, "num_packets": 75},
        {"num_packets": 10},  # a frame a second
        {"num_pixels": 900},
    ],
)
def test_a_picture_that_clearly_holds_less_comes_last(flaw):
    assert choose([picture(0, is_default=True, **flaw), picture(1)]).video == 1
    assert choose([picture(0, is_default=True, **flaw), sound(1)]) == Choice(0, 1)


@pytest.mark.parametrize(
    "flaw",
    [
        {"seconds": 1.0, "num_packets": 47, "num_bytes": 10**4},
        {"num_bytes": 3000},  # silence, as it compresses
        {"num_packets": 1, "seconds": 0.0, "num_bytes": 200},
    ],
)
def test_sound_that_clearly_holds_less_comes_last(flaw):
    assert choose([sound(0, is_default=True, **flaw), sound(1)]).audio == 1
    assert choose([sound(0, **flaw)]).audio == 0


def test_bytes_of_different_codecs_say_nothing():
    assert choose([sound(0, num_bytes=10**4), sound(1, codec="pcm", num_bytes=10**6)]).audio == 0


def test_flags_and_order_decide_between_equals():
    assert choose([picture(0), picture(1), sound(2), sound(3)]) == Choice(0, 2)
    assert choose([picture(0), picture(1, is_default=True)]).video == 1
    assert choose([sound(0, is_default=True, is_secondary=True), sound(1)]).audio == 1
    assert choose([sound(0, seconds=9.0), sound(1, is_default=True, seconds=8.0)]).audio == 1


def test_a_picture_goes_with_the_sound_of_its_program():
    crossed = [picture(0), sound(1), picture(2), sound(3)]
    assert choose(crossed, [{0, 3}, {2, 1}]) == Choice(0, 3)
    assert choose(crossed, [{2, 1}, {0, 3}]) == Choice(2, 1)


def test_a_program_with_both_comes_first():
    assert choose([sound(0), picture(1), sound(2)], [{0}, {1, 2}]) == Choice(1, 2)
    # The sound of another program is not that of the picture.
    assert choose([sound(0), picture(1)], [{0}, {1}]) == Choice(1, None)
    # What no program lists may belong to any.
    assert choose([sound(0), picture(1)], [{1}]) == Choice(1, 0)
    short = [picture(0, seconds=1.0, num_packets=25), sound(1, seconds=1.0), picture(2), sound(3)]
    assert choose(short, [{0, 1}, {2, 3}]) == Choice(2, 3)


def test_a_stream_that_failed_is_replaced():
    assert choose([picture(0), sound(1), sound(2)], failed={1}) == Choice(0, 2)
    # Another program takes over with both, rather than mixing the two.
    streams = [picture(0), sound(1), picture(2), sound(3)]
    assert choose(streams, [{0, 1}, {2, 3}], failed={0}) == Choice(2, 3)


def test_streams_without_time_stamps_are_compared_by_what_is_left():
    assert choose([picture(0, seconds=0.0), picture(1, seconds=0.0)]).video == 0
