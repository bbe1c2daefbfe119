"""Audio to the 16 kHz mono float32 samples that every model here takes.

A recording is named by a reference: a path, with a fragment where it is part of a file.

    speech/a.flac                            the whole file
    lectures/monday.opus#t=61.44,88.032      from 61.44 s to 88.032 s (W3C Media Fragments, section 4.2.1)
    audio/radio-00000.tar#bytes=512,90210    an audio file of 90,210 bytes inside a tar, at byte 512
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
"""Hz, of Whisper's feature extractor."""

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64"})
"""File names that count as audio in a bare folder; libsndfile reads them all."""

_FRAGMENT = re.compile(r"#(?:bytes=(\d+),(\d+))?&?(?:t=([\d.]+),([\d.]+))?$")
_BLOCK_SECONDS = 60


class AudioError(Exception):
    """Audio that cannot be used; the message is the reason alone, without the path."""


@dataclass(frozen=True)
class AudioReference:
    """A recording: a file, perhaps inside a tar, perhaps a part of it in seconds."""

    path: Path
    bytes: tuple[int, int] | None = None
    """First byte and count, inside a tar."""
    seconds: tuple[float, float] | None = None
    """Start and end."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference written as in this module's head; any other `#` belongs to the path."""
        found = _FRAGMENT.search(text)
        if found is None or not any(found.groups()):
            return cls(Path(text))
        offset, count, start, end = found.groups()
        return cls(
            Path(text[: found.start()]), (int(offset), int(count)) if offset else None,
            (float(start), float(end)) if start else None,
        )  # fmt: skip

    def __str__(self) -> str:
        parts = [f"bytes={self.bytes[0]},{self.bytes[1]}"] if self.bytes else []
        parts += [f"t={format_seconds(self.seconds[0])},{format_seconds(self.seconds[1])}"] if self.seconds else []
        return f"{self.path}#{'&'.join(parts)}" if parts else str(self.path)


def format_seconds(seconds: float) -> str:
    """Seconds to the microsecond, less than a sample at any rate, without trailing zeros."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def read_audio(audio: str | Path | Sequence[str]) -> np.ndarray:
    """Samples [N] at 16 kHz, mono float32, of a reference, or of several one after the other.

    Raises AudioError with the reason: unreadable, empty, truncated, or with values that are not numbers.
    """
    if isinstance(audio, str | Path):
        return np.concatenate(list(read_blocks(AudioReference.parse(str(audio)))))
    return np.concatenate([read_audio(part) for part in audio])


def read_blocks(reference: AudioReference, seconds: int | None = None) -> Iterator[np.ndarray]:
    """The same samples in blocks of so many seconds, or at once; an hour of audio never stands in memory whole."""
    with _open(reference) as file:
        rate = file.samplerate
        start, stop = (round(second * rate) for second in reference.seconds or (0, file.frames / rate))
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1) if rate != SAMPLE_RATE else None
        file.seek(start)
        left = stop - start
        if left <= 0:
            raise AudioError("no samples")
        while left > 0:
            wanted = min(left, rate * seconds) if seconds else left
            block_NC = file.read(wanted, dtype="float32", always_2d=True)
            if len(block_NC) < wanted:
                raise AudioError(
                    f"truncated: {stop - left + len(block_NC) - start} of {stop - start} samples are there"
                )
            if not np.isfinite(block_NC).all():
                raise AudioError("samples that are not numbers (NaN or infinite)")
            left -= wanted
            samples = block_NC.mean(axis=1, dtype=np.float32)
            yield resampler.resample_chunk(samples, last=left == 0) if resampler else samples


def duration_of(reference: AudioReference) -> float:
    """Length in seconds, from the file's head. Raises AudioError as `read_audio`."""
    if reference.seconds:
        return reference.seconds[1] - reference.seconds[0]
    with _open(reference) as file:
        return file.frames / file.samplerate


@contextmanager
def _open(reference: AudioReference) -> Iterator[soundfile.SoundFile]:
    path = reference.path
    try:
        if reference.bytes is not None:
            with path.open("rb") as tar:
                tar.seek(reference.bytes[0])
                source: Path | io.BytesIO = io.BytesIO(tar.read(reference.bytes[1]))
        else:
            source = path
        with soundfile.SoundFile(source) as file:
            # libsndfile trusts the shorter of a WAV's head and its file, and notes the difference in its log. A piped
            # WAV declares 2^31 - 1 or more, since its writer could not know.
            short = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
            if short and int(short[2]) < int(short[1]) < 2**31 - 1:
                raise AudioError(f"truncated: {short[2]} of {short[1]} bytes are there")
            yield file
    except FileNotFoundError as error:
        raise AudioError("no such file") from error
    except PermissionError as error:
        raise AudioError("no permission to read") from error
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        if not path.exists():
            raise AudioError("no such file") from error
        if not _readable(path):
            raise AudioError("no permission to read") from error
        reason = "empty file" if path.stat().st_size == 0 else f"unreadable: {_reason(error)}"
        raise AudioError(reason) from error


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__
