"""Place the labels of split recordings on the time axis of the original recordings, as subtitles."""

import re
from collections.abc import Sequence
from itertools import accumulate

from data_prep.audio.segmentation import recording_id
from data_prep.labels.label_store import Label
from eval.audio.recordings import AudioReference
from eval.decoding.subtitles import Cue

_TIMED_TEXT = re.compile(r"<\|(\d+\.\d\d)\|>([^<]*)<\|(\d+\.\d\d)\|>")


def build_timeline(labels: Sequence[Label]) -> dict[str, list[Cue]]:
    """Return the cues of each recording, by recording id, in order of time.

    The cues follow the teacher's timestamps; a label without timestamps becomes one cue. Times are in seconds from the
    start of the recording. Labels with an error are skipped.
    """
    cues: dict[str, list[Cue]] = {}
    for label in labels:
        if label.error is not None:
            continue
        part_starts = [0.0, *accumulate(label.part_seconds)]
        segments = _TIMED_TEXT.findall(label.timed.text) if label.timed is not None else []
        spans = [(float(start), float(end), text.strip()) for start, text, end in segments]
        for start, end, text in spans or [(0.0, label.seconds, label.text)]:
            # A cue belongs to the part in which it starts, and ends with that part at the latest.
            part = max(index for index in range(len(label.parts)) if part_starts[index] <= start + 1e-6)
            part_offset = (AudioReference.parse(label.parts[part]).time_range or (0.0, 0.0))[0] - part_starts[part]
            latest_end = part_starts[part + 1] if len(label.parts) > 1 and spans else label.seconds
            cue = (start + part_offset, min(end, latest_end) + part_offset, text)
            cues.setdefault(recording_id(label.parts[part]), []).append(cue)
    return {recording: sorted(group, key=lambda cue: cue[0]) for recording, group in sorted(cues.items())}
