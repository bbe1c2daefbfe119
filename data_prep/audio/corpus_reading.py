"""Read every recording of the corpus once: check that it can be decoded, hash its samples, split it if it is long.

A broken file is thus reported while the corpus is built, not days later. The hash makes later stages stale when a
recording changes.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.audio.segmentation import SpeechDetector, recording_id, split_recording
from data_prep.sources.discovery import SourceRecording, hash_fraction
from eval.audio.recordings import SAMPLE_RATE, AudioError, AudioReference, duration_of, read_blocks
from eval.audio.utterances import Utterance
from recipes.core.errors import RunError, UserError
from recipes.core.logs import log
from recipes.core.progress import track
from recipes.schema.corpus_section import CorpusSection

SPLITS = ("train", "validation", "test")

_BLOCK_SECONDS = 60


@dataclass(frozen=True)
class RefusedRecording:
    """A recording that cannot be used; one entry of refused.json."""

    path: str
    reason: str


def read_recordings(
    recordings: Mapping[str, Sequence[SourceRecording]], corpus: CorpusSection
) -> tuple[list[Utterance], list[RefusedRecording]]:
    """Decode every recording once, in threads (libsndfile and ONNX Runtime release the interpreter lock).

    Args:
        recordings: The recordings of each source, by the source's name.
        corpus: Limits on the number and the length of recordings, and the fractions to hold out.
    """
    jobs = [
        (source, recording)
        for source, items in recordings.items()
        for recording in _limit_each_split(items, corpus.limit)
    ]
    utterances: list[Utterance] = []
    refused: list[RefusedRecording] = []
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda job: _read_or_refuse(job[0], job[1], corpus), jobs)
        for result in track(results, "corpus", len(jobs), unit="file"):
            if isinstance(result, RefusedRecording):
                refused.append(result)
                continue
            utterances += result
    named_splits = {source: {item.split for item in items} for source, items in recordings.items()}
    return hold_out(utterances, named_splits, corpus), refused


def hold_out(
    utterances: Sequence[Utterance], named_splits: Mapping[str, set[str]], corpus: CorpusSection
) -> list[Utterance]:
    """Return the utterances with a part of the train split moved to test and validation, where a source lacks them.

    The choice is made by recording, so that the pieces of one recording are never in two splits, and by a hash of its
    id, so that it stays the same when recordings are added.

    Args:
        utterances: All utterances of the corpus.
        named_splits: The splits that each source has by itself, by the source's name.
        corpus: `test_fraction` and `validation_fraction`.
    """
    train = {
        source: {recording_id(item.id) for item in utterances if item.source == source and item.split == "train"}
        for source in named_splits
    }
    split_of: dict[str, str] = {}
    for source, ids in train.items():
        if "test" not in named_splits[source] and corpus.test_fraction and len(ids) > 1:
            count = max(1, round(corpus.test_fraction * len(ids)))
            split_of |= dict.fromkeys(sorted(ids, key=lambda name: hash_fraction(f"test {name}"))[:count], "test")
    left = {source: sorted(ids - split_of.keys(), key=hash_fraction) for source, ids in train.items()}
    candidates = [name for source, ids in left.items() if "validation" not in named_splits[source] for name in ids]
    chosen = [name for name in candidates if hash_fraction(name) < corpus.validation_fraction]
    has_validation = any(item.split == "validation" for item in utterances) or bool(chosen)
    if not has_validation and corpus.validation_fraction and sum(map(len, left.values())) > 1:
        chosen = candidates[:1]
    split_of |= dict.fromkeys(chosen, "validation")
    return [replace(item, split=split_of.get(recording_id(item.id), item.split)) for item in utterances]


def _limit_each_split(recordings: Sequence[SourceRecording], limit: int | None) -> Iterator[SourceRecording]:
    counts = dict.fromkeys(SPLITS, 0)
    for recording in recordings:
        counts[recording.split] += 1
        if limit is None or counts[recording.split] <= limit:
            yield recording


def _read_or_refuse(
    source: str, recording: SourceRecording, corpus: CorpusSection
) -> list[Utterance] | RefusedRecording:
    try:
        return _read_recording(source, recording, corpus)
    except AudioError as error:
        return RefusedRecording(recording.audio or f"{source}/{recording.name}", str(error))


def _read_recording(source: str, recording: SourceRecording, corpus: CorpusSection) -> list[Utterance]:
    """Return the recording as one utterance, or its pieces if it is longer than `corpus.max_seconds`.

    Raises AudioError when it cannot be decoded, is shorter than `corpus.min_seconds`, or is long and holds no speech.
    """
    if not recording.audio:
        raise AudioError("no audio in its row")
    reference = AudioReference.parse(recording.audio)
    detector = SpeechDetector() if duration_of(reference) > corpus.max_seconds else None
    samples, digest = 0, hashlib.sha256()
    for block in read_blocks(reference, block_seconds=_BLOCK_SECONDS):
        samples += len(block)
        digest.update(block.astype(np.float32, copy=False).data)
        if detector is not None:
            detector.feed(block)
    seconds = samples / SAMPLE_RATE
    if seconds < corpus.min_seconds:
        raise AudioError(f"{seconds:.4f} s long, below corpus.min_seconds {corpus.min_seconds}")
    name = f"{source}/{recording.name}"
    utterance = Utterance(
        id=name, source=source, split=recording.split, audio=[recording.audio], seconds=seconds, text=recording.text,
        speaker=recording.speaker, language=recording.language, parts=[name], part_seconds=[seconds],
        sha256=digest.hexdigest(),
    )  # fmt: skip
    if detector is None:
        return [utterance]
    if not (pieces := split_recording(utterance, detector.probabilities, corpus.max_seconds)):
        raise AudioError(f"no speech in {seconds:.0f} s")
    return pieces


def check_refused(
    utterances: Sequence[Utterance], refused: Sequence[RefusedRecording], max_error_rate: float, report: Path
) -> None:
    """Log every refused recording and stop if there are too many.

    Raises UserError when no recording can be used, and RunError when the fraction of refused recordings is above
    `max_error_rate`; its message points to the file `report`, which lists them.
    """
    for recording in refused:
        log.warning(f"corpus: refused {recording.path}: {recording.reason}")
    accepted = {recording_id(part) for utterance in utterances for part in utterance.parts}
    total = len(accepted) + len(refused)
    if not utterances:
        raise UserError(
            f"corpus.sources: expected audio, found no readable recording among {total} files; check the folders and "
            "the reasons above"
        )
    if len(refused) > max_error_rate * total:
        raise RunError(
            f"corpus: {len(refused)} of {total} files cannot be used, above corpus.max_error_rate {max_error_rate}; "
            f"see {report} for the reasons, then repair the files or raise the limit"
        )


def relocate_audio(utterance: Utterance, folder: Path, final: Path) -> Utterance:
    """Replace `folder` by `final` in the audio paths below `folder`, for a folder that is about to be renamed."""
    audio = [
        str(final / Path(part).relative_to(folder)) if Path(part).is_relative_to(folder) else part
        for part in utterance.audio
    ]
    return replace(utterance, audio=audio)
