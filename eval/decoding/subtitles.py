"""Write transcripts as SubRip (SRT) and WebVTT subtitles."""

from collections.abc import Sequence
from typing import Literal

SubtitleFormat = Literal["srt", "vtt"]

Cue = tuple[float, float, str]
"""One subtitle: start and end in seconds, and its text."""


def format_subtitles(cues: Sequence[Cue], form: SubtitleFormat) -> str:
    """Return the contents of a subtitle file with these cues, in their order.

    SRT numbers its cues and writes decimal commas; WebVTT has a header line, decimal points and escaped markup. Line
    breaks in a cue's text become spaces, and an arrow `-->` becomes `->`, since both would break the file's structure.
    """
    decimal_mark = "," if form == "srt" else "."
    blocks = ["WEBVTT\n"] if form == "vtt" else []
    for number, (start, end, text) in enumerate(cues, 1):
        head = f"{number}\n" if form == "srt" else ""
        times = f"{format_clock(start, decimal_mark)} --> {format_clock(end, decimal_mark)}"
        blocks.append(f"{head}{times}\n{_escape(text, form)}\n")
    return "\n".join(blocks)


def format_clock(seconds: float, decimal_mark: str) -> str:
    """Format a time as `01:02:03,450`, to the millisecond."""
    milliseconds = round(1000 * seconds)
    hours, milliseconds = divmod(milliseconds, 3_600_000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{decimal_mark}{milliseconds % 1000:03d}"


def _escape(text: str, form: SubtitleFormat) -> str:
    # An empty line would end the cue, and an arrow in the text would look like a cue's times.
    text = " ".join(text.split()).replace("-->", "->")
    return text.replace("&", "&amp;").replace("<", "&lt;") if form == "vtt" else text
