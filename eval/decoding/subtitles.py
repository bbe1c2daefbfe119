"""Transcripts as SubRip (SRT) and WebVTT subtitles."""

from collections.abc import Sequence
from typing import Literal

Cue = tuple[float, float, str]
"""Start and end in s, text."""


def format_subtitles(cues: Sequence[Cue], form: Literal["srt", "vtt"]) -> str:
    """The whole file. Both forms differ in their head, the numbers and the decimal mark."""
    comma = "," if form == "srt" else "."
    blocks = ["WEBVTT\n"] if form == "vtt" else []
    for number, (start, end, text) in enumerate(cues, 1):
        head = f"{number}\n" if form == "srt" else ""
        blocks.append(f"{head}{format_clock(start, comma)} --> {format_clock(end, comma)}\n{_escaped(text, form)}\n")
    return "\n".join(blocks)


def format_clock(seconds: float, mark: str) -> str:
    """`01:02:03,450`."""
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def _escaped(text: str, form: str) -> str:
    # An empty line ends a cue, and an arrow within one would begin another; WebVTT reads markup.
    text = " ".join(text.split()).replace("-->", "->")
    return text.replace("&", "&amp;").replace("<", "&lt;") if form == "vtt" else text
