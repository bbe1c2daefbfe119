"""Test of placing labels on the time axis of their recording."""

from data_prep.labels.timeline import build_timeline
from eval.decoding.subtitles import format_subtitles
from tests.unit.labels import decoding, label


def test_cues_have_the_times_of_their_recording() -> None:
    later = label("s/train/r.ogg#t=60.5,70.5", parts=["s/train/r.ogg#t=60.5,70.5"], seconds=10.0, part_seconds=[10.0])
    packed = label(
        "s/train/r.ogg#t=10,14", seconds=9.0, parts=["s/train/r.ogg#t=10,14", "s/train/r.ogg#t=30,35"],
        part_seconds=[4.0, 5.0],
        timed=decoding([1], text="<|0.20|>one<|3.00|><|4.50|>two words<|8.50|>"),
    )  # fmt: skip
    cues = build_timeline([later, packed, label("broken", error="gone")])
    assert cues == {
        "s/train/r.ogg": [
            (10.2, 13.0, "one"),
            (30.5, 34.5, "two words"),
            (60.5, 70.5, "text"),
        ]
    }
    assert format_subtitles(cues["s/train/r.ogg"], "srt").startswith("1\n00:00:10,200 --> 00:00:13,000\none\n\n2\n")
