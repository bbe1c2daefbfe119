"""Labels put back on the clock of their recordings: an SRT file for each long recording that was split.

python -m data_prep.export_subtitles recipes/NAME/recipe.yaml runs/NAME/srt
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from data_prep.audio.segmentation import recording_id
from data_prep.labels.label_store import Label
from eval.audio.recordings import AudioReference

_TIMED = re.compile(r"<\|(\d+\.\d\d)\|>([^<]*)<\|(\d+\.\d\d)\|>")


@dataclass(frozen=True)
class TimedLine:
    """Something said in a recording."""

    start: float
    end: float
    """Seconds from the start of the recording."""
    text: str


def build_timeline(labels: Sequence[Label]) -> dict[str, list[TimedLine]]:
    """By recording id its lines in order: by the teacher's timestamps where it wrote any, else a line a label."""
    lines: dict[str, list[TimedLine]] = {}
    for label in labels:
        if label.error is not None:
            continue
        starts = [0.0, *accumulate(label.part_seconds)]
        said = _TIMED.findall(label.timed.text) if label.timed is not None else []
        spans = [(float(start), float(end), text.strip()) for start, text, end in said] or [
            (0.0, label.seconds, label.text)
        ]
        for start, end, text in spans:
            # The part in which a line starts; a line that runs into the next one ends with its part.
            part = max(index for index in range(len(label.parts)) if starts[index] <= start + 1e-6)
            offset = (AudioReference.parse(label.parts[part]).seconds or (0.0, 0.0))[0] - starts[part]
            last = starts[part + 1] if len(label.parts) > 1 and said else label.seconds
            lines.setdefault(recording_id(label.parts[part]), []).append(
                TimedLine(start + offset, min(end, last) + offset, text)
            )
    return {name: sorted(each, key=lambda line: line.start) for name, each in sorted(lines.items())}


def srt(lines: Sequence[TimedLine]) -> str:
    """SubRip text."""
    blocks = [
        f"{number}\n{_clock(line.start)} --> {_clock(line.end)}\n{line.text}\n" for number, line in enumerate(lines, 1)
    ]
    return "\n".join(blocks)


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"
