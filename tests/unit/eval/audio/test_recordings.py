"""References to recordings, and reading audio of any format, whole or in parts."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from eval.audio.recordings import AudioError, AudioReference, duration_of, read_audio, read_blocks

NOISE = (np.random.default_rng(0).standard_normal(32_000) * 0.1).astype(np.float32)

paths = st.text("abc#é =&.,t1/", min_size=1, max_size=12).map(Path)
byte_ranges = st.tuples(st.integers(0, 10**12), st.integers(1, 10**9))
time_ranges = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)).map(lambda t: (t[0] / 1000, (t[0] + t[1]) / 1000))


@given(paths, st.none() | byte_ranges, st.none() | time_ranges)
def test_a_reference_is_parsed_as_it_is_written(
    path: Path, byte_range: tuple[int, int] | None, time_range: tuple[float, float] | None
) -> None:
    reference = AudioReference(path, byte_range, time_range)
    if byte_range or time_range or AudioReference.parse(str(path)).path == path:
        assert AudioReference.parse(str(reference)) == reference


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_time_range_has_the_samples_of_the_whole_file(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", NOISE, 16_000)
    whole = read_audio(tmp_path / f"a.{suffix}")
    part = read_audio(f"{tmp_path}/a.{suffix}#t=0.5,1.25")
    np.testing.assert_allclose(part, whole[8_000:20_000], atol=1e-6)
    joined = read_audio([f"{tmp_path}/a.{suffix}#t=0.5,1.25", f"{tmp_path}/a.{suffix}#t=1.25,2"])
    np.testing.assert_allclose(joined, whole[8_000:], atol=1e-6)


def test_a_file_inside_a_tar_is_read_in_place(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", NOISE, 16_000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "b.tar").write_bytes(b"x" * 512 + data + b"y" * 99)
    reference = f"{tmp_path}/b.tar#bytes=512,{len(data)}"
    np.testing.assert_array_equal(read_audio(reference), read_audio(tmp_path / "a.flac"))
    assert duration_of(AudioReference.parse(reference)) == 2.0


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_blocks_join_to_the_whole_recording(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([NOISE, NOISE], 1), rate)
    blocks = np.concatenate(list(read_blocks(AudioReference(tmp_path / "a.wav"), block_seconds=1)))
    np.testing.assert_allclose(blocks, read_audio(tmp_path / "a.wav"), atol=1e-6)
    assert len(blocks) == pytest.approx(len(NOISE) * 16_000 / rate, abs=1)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", NOISE, 16_000)
    data = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"truncated|unreadable"):
        read_audio(tmp_path / f"a.{suffix}")


def test_a_piped_wav_without_a_length_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE, 16_000, subtype="PCM_16")
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_audio(tmp_path / "a.wav")) == len(NOISE)


def test_a_file_without_permission_says_so() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "a.wav"
        soundfile.write(file, NOISE, 16_000)
        file.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65_534)  # root may read every file
        try:
            with pytest.raises(AudioError, match="permission"):
                read_audio(file)
        finally:
            os.seteuid(user)
