"""Read audio files of any rate and format as 16 kHz mono float32 samples.

The project names a recording by a reference: a path, with a fragment if it is only a part of a file.

    speech/a.flac                            the whole file
    lectures/monday.opus#t=61.44,88.032      from 61.44 s to 88.032 s (W3C Media Fragments, section 4.2.1)
    audio/radio-00000.tar#bytes=512,90210    an audio file of 90,210 bytes inside a tar, at byte 512

N samples, C channels.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
"""Sampling rate of Whisper's feature extractor, Hz."""

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64"})
"""Suffixes of the files that count as audio when a folder is searched; libsndfile reads all of them."""

_FRAGMENT = re.compile(r"#(?:bytes=(\d+),(\d+))?&?(?:t=([\d.]+),([\d.]+))?$")


class AudioError(Exception):
    """Audio that cannot be used. The message is the reason only, without the path."""


@dataclass(frozen=True)
class AudioReference:
    """A recording: a file on disk or in a tar, or a time range of one. `str()` gives the form that `parse` reads."""

    path: Path
    byte_range: tuple[int, int] | None = None
    """Offset and length in bytes of an audio file inside a tar; None if `path` is the audio file itself."""
    time_range: tuple[float, float] | None = None
    """Start and end in seconds; None for the whole recording."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference in the form that the module's docstring shows; any other `#` belongs to the path."""
        match = _FRAGMENT.search(text)
        if match is None or not any(match.groups()):
            return cls(Path(text))
        offset, length, start, end = match.groups()
        return cls(
            Path(text[: match.start()]), (int(offset), int(length)) if offset else None,
            (float(start), float(end)) if start else None,
        )  # fmt: skip

    def __str__(self) -> str:
        parts = []
        if self.byte_range:
            parts.append(f"bytes={self.byte_range[0]},{self.byte_range[1]}")
        if self.time_range:
            parts.append(f"t={format_seconds(self.time_range[0])},{format_seconds(self.time_range[1])}")
        return f"{self.path}#{'&'.join(parts)}" if parts else str(self.path)


def format_seconds(seconds: float) -> str:
    """Format seconds without trailing zeros, to the microsecond: finer than a sample at any audio rate."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def read_audio(audio: str | Path | Sequence[str]) -> np.ndarray:
    """Read the recording of a reference, or of several references concatenated.

    Returns mono float32 samples [N] at 16 kHz. Raises AudioError if the audio is missing, unreadable, empty, truncated
    or has samples that are not finite.
    """
    if isinstance(audio, str | Path):
        return np.concatenate(list(read_blocks(AudioReference.parse(str(audio)))))
    return np.concatenate([read_audio(part) for part in audio])


def read_blocks(reference: AudioReference, block_seconds: int | None = None) -> Iterator[np.ndarray]:
    """Yield the samples that `read_audio` returns in blocks, so that an hour of audio is never in memory as a whole.

    Each block is read from `block_seconds` of the file; None yields one block. Raises AudioError as `read_audio` does.
    """
    with _open(reference) as file:
        rate = file.samplerate
        start, stop = (round(second * rate) for second in reference.time_range or (0, file.frames / rate))
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1) if rate != SAMPLE_RATE else None
        file.seek(start)
        left = stop - start
        if left <= 0:
            raise AudioError("no samples")
        while left > 0:
            wanted = min(left, rate * block_seconds) if block_seconds else left
            block_NC = file.read(wanted, dtype="float32", always_2d=True)
            if len(block_NC) < wanted:
                raise AudioError(f"truncated: found {stop - left + len(block_NC) - start} of {stop - start} samples")
            if not np.isfinite(block_NC).all():
                raise AudioError("samples that are not numbers (NaN or infinite)")
            left -= wanted
            samples = block_NC.mean(axis=1, dtype=np.float32)
            yield resampler.resample_chunk(samples, last=left == 0) if resampler else samples


def duration_of(reference: AudioReference) -> float:
    """Return the length in seconds from the reference or the file's header. Raises AudioError as `read_audio` does."""
    if reference.time_range:
        return reference.time_range[1] - reference.time_range[0]
    with _open(reference) as file:
        return file.frames / file.samplerate


@contextmanager
def _open(reference: AudioReference) -> Iterator[soundfile.SoundFile]:
    path = reference.path
    try:
        if reference.byte_range is not None:
            offset, length = reference.byte_range
            with path.open("rb") as tar:
                tar.seek(offset)
                source: Path | io.BytesIO = io.BytesIO(tar.read(length))
        else:
            source = path
        with soundfile.SoundFile(source) as file:
            # If a WAV's header and its file disagree on the length, libsndfile takes the shorter one and only notes it
            # in its log. A WAV written to a pipe declares 2^31 - 1 or more, since its writer could not know the length.
            mismatch = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
            if mismatch and int(mismatch[2]) < int(mismatch[1]) < 2**31 - 1:
                raise AudioError(f"truncated: found {mismatch[2]} of {mismatch[1]} bytes")
            yield file
    except FileNotFoundError as error:
        raise AudioError("no such file") from error
    except PermissionError as error:
        raise AudioError("no permission to read") from error
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        if not path.exists():
            raise AudioError("no such file") from error
        if not _is_readable(path):
            raise AudioError("no permission to read") from error
        reason = "empty file" if path.stat().st_size == 0 else f"unreadable: {_libsndfile_reason(error)}"
        raise AudioError(reason) from error


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _libsndfile_reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__
