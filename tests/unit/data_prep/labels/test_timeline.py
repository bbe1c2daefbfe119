from data_prep.labels.timeline import TimedLine, build_timeline, srt
from tests.unit.labels import decoding, label


def test_lines_stand_on_the_clock_of_their_recording() -> None:
    later = label("s/train/r.ogg#t=60.5,70.5", parts=["s/train/r.ogg#t=60.5,70.5"], seconds=10.0, part_seconds=[10.0])
    packed = label(
        "s/train/r.ogg#t=10,14", seconds=9.0, parts=["s/train/r.ogg#t=10,14", "s/train/r.ogg#t=30,35"],
        part_seconds=[4.0, 5.0],
        timed=decoding([1], text="<|0.20|>one<|3.00|><|4.50|>two words<|8.50|>"),
    )  # fmt: skip
    lines = build_timeline([later, packed, label("broken", error="gone")])
    assert lines == {
        "s/train/r.ogg": [
            TimedLine(10.2, 13.0, "one"),
            TimedLine(30.5, 34.5, "two words"),
            TimedLine(60.5, 70.5, "text"),
        ]
    }
    assert srt(lines["s/train/r.ogg"]).startswith("1\n00:00:10,200 --> 00:00:13,000\none\n\n2\n")
