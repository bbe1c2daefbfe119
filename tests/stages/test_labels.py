"""The label engine as a user runs it: broken corpora, kills, several processes, long and unlabelled audio."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from data_prep.labels.label_store import Label, read_labels
from data_prep.labels.timeline import build_timeline, srt
from eval.audio.recordings import read_audio
from eval.audio.utterances import read_utterances
from tests.conftest import ROOT, SENTENCES, Once
from tests.stages.conftest import Run, sottovoce, write_labelled, write_recipe

TWO = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 1
num_processes: 2
"""


def folder(recipe: Path, stage: str = "") -> Path:
    return recipe.parent / "runs" / "small" / stage


def stored(recipe: Path) -> list[Label]:
    return read_labels(folder(recipe, "labels"), distributions=True)


def same(labels: list[Label], others: list[Label]) -> bool:
    """Row by row, stored logits included; to 1e-4, since arithmetic differs with the number of threads."""
    if labels != others:
        return False
    pairs = [(one.plain.distribution, other.plain.distribution) for one, other in zip(labels, others, strict=True)]
    return all(
        one is not None and other is not None and np.array_equal(one.ids_NK, other.ids_NK)
        and np.allclose(one.logits_NK, other.logits_NK, atol=1e-4)
        for one, other in pairs
    )  # fmt: skip


OVERRIDES = ["--until", "labels", "labels.batch_size=2", "labels.top_k=4", "labels.timestamps=true"]


@pytest.fixture(scope="module")
def whole(once: Once, speech: Path, run: Run) -> list[Label]:
    """Labels of an uninterrupted run of one process."""

    def label(folder: Path) -> None:
        done = run(*sottovoce("run", str(write_recipe(folder, speech)), *OVERRIDES))
        assert done.returncode == 0, done.stderr

    return stored(once("whole", label) / "recipe.yaml")


def two_processes(recipe: Path) -> str:
    (recipe.parent / "two.yaml").write_text(TWO)
    return f"launch={recipe.parent / 'two.yaml'}"


def approximately(labels: list[Label]) -> list[tuple[object, ...]]:
    return [
        (row.id, row.plain.tokens, row.timed and row.timed.tokens, row.text, row.language, row.error) for row in labels
    ]


def test_two_processes_label_as_one(whole: list[Label], speech: Path, run: Run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, speech)
    done = run(*sottovoce("run", str(recipe), *OVERRIDES, two_processes(recipe)))
    assert done.returncode == 0, done.stderr
    assert json.loads((folder(recipe, "labels") / "stage.json").read_text())["metrics"]["processes"] == 2
    assert approximately(stored(recipe)) == approximately(whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_kills_at_random_moments_lose_and_double_nothing(
    whole: list[Label], speech: Path, run: Run, tmp_path: Path, processes: int
) -> None:
    recipe = write_recipe(tmp_path, speech)
    launch = [two_processes(recipe)] if processes == 2 else []
    kill_while_labelling(sottovoce("run", str(recipe), *OVERRIDES, *launch), folder(recipe), kills=2, batches=10)
    done = run(*sottovoce("run", str(recipe), *OVERRIDES, *launch))
    assert done.returncode == 0, done.stderr
    if processes == 1:
        assert same(stored(recipe), whole)
    assert approximately(stored(recipe)) == approximately(whole)


def kill_while_labelling(command: list[str], runs: Path, kills: int, batches: int, seed: int = 0) -> list[int]:
    """Start and SIGKILL the whole process group, each time some batches later; the parts that stood each time."""
    draw, stood = random.Random(seed), []
    for number in range(kills):
        process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wanted = (number + 1) * batches // (kills + 1)
        deadline = time.monotonic() + 300
        while len(list(runs.glob("labels.partial/parts/*.parquet"))) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.random() * 0.3)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        stood.append(len(list(runs.glob("labels.partial/parts/*.parquet"))))
    return stood


def write_corpus(place: Path, speech: Path) -> tuple[set[str], set[str]]:
    """112 files: 82 good ones, some in odd forms, and 30 that are broken."""
    place.mkdir()
    good, clips = set(), [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))]
    for number in range(78):
        good.add(f"good-{number:02d}.flac")
        soundfile.write(place / f"good-{number:02d}.flac", clips[number % 16][: 8_000 + 100 * number], 16_000)
    for name, samples, rate, subtype in (
        ("stereo 48k.wav", np.stack([np.repeat(clips[0], 3)] * 2, 1), 48_000, "PCM_16"),
        ("telephone.wav", clips[1][::2], 8_000, "PCM_16"),
        ("studio-24.wav", clips[2], 16_000, "PCM_24"),
        ("été 音声.flac", clips[3], 16_000, "PCM_16"),
    ):
        good.add(name)
        soundfile.write(place / name, samples, rate, subtype=subtype)
    broken = set()
    for number in range(5):
        for name, content in (
            (f"empty-{number}.wav", b""), (f"text-{number}.wav", b"this is no audio, whatever its name"),
            (f"short-{number}.flac", (place / f"good-{number:02d}.flac").read_bytes()[:3_000]),
        ):  # fmt: skip
            (place / name).write_bytes(content)
            broken.add(name)
        for name, samples in (
            (f"nan-{number}.wav", np.where(np.arange(len(clips[4])) == 99, np.nan, clips[4])),
            (f"one-{number}.wav", clips[5][:1]),
        ):
            soundfile.write(place / name, samples, 16_000, subtype="FLOAT")
            broken.add(name)
    soundfile.write(place / "silence.flac", np.zeros(600 * 16_000, np.float32), 16_000)
    for number in range(4):
        (place / f"gone-{number}.wav").symlink_to(place / "nowhere.wav")
    return good, broken | {"silence.flac", *(f"gone-{number}.wav" for number in range(4))}


def test_thirty_broken_files_of_a_hundred_are_named_and_the_others_labelled(
    speech: Path, run: Run, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, speech)
    good, broken = write_corpus(tmp_path / "audio", speech)
    assert (len(good), len(broken)) == (82, 30)
    source = f"corpus.sources=[{{audio: {tmp_path / 'audio'}, name: spoken}}]"
    strict = run(*sottovoce("run", str(recipe), source, "--until", "labels"))
    assert strict.returncode == 1
    assert "30 of 112 files cannot be used, above corpus.max_error_rate 0.1" in strict.stderr
    done = run(
        *sottovoce("run", str(recipe), source, "--until", "labels", "corpus.max_error_rate=0.3", "labels.batch_size=16")
    )
    assert done.returncode == 0, done.stderr
    reasons = {
        Path(row["path"]).name: row["reason"]
        for row in json.loads((folder(recipe, "corpus") / "refused.json").read_text())
    }
    assert reasons.keys() == broken
    expected = {"empty": "empty file", "text": "unreadable", "short": "unreadable|truncated", "nan": "not numbers",
                "one": "below corpus.min_seconds", "silence": "no speech in 600 s", "gone": "no such file"}  # fmt: skip
    for name, reason in reasons.items():
        assert any(part in reason for part in expected[name.split("-")[0].split(".")[0]].split("|")), (
            f"{name}: {reason}"
        )
    assert {Path(label.id).name for label in read_labels(folder(recipe, "labels"))} == good


def test_a_long_recording_is_split_labelled_and_rebuilt_in_order(speech: Path, run: Run, tmp_path: Path) -> None:
    clips = [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))]
    gap = np.zeros(12_000, np.float32)
    spoken, length = [], 0
    for clip in clips:
        loud = np.flatnonzero(np.abs(clip) > 0.01)
        spoken.append(((length + loud[0]) / 16_000, (length + loud[-1]) / 16_000))
        length += len(clip) + len(gap)
    (tmp_path / "audio").mkdir()
    long = np.concatenate([part for clip in clips for part in (clip, gap)])
    soundfile.write(tmp_path / "audio" / "all.flac", long, 16_000)
    recipe = write_recipe(tmp_path, speech)
    source = f"corpus.sources=[{{audio: {tmp_path / 'audio'}, name: spoken}}]"
    done = run(*sottovoce("run", str(recipe), source, "--until", "labels", "corpus.validation_fraction=0"))
    assert done.returncode == 0, done.stderr
    pieces = read_utterances(folder(recipe, "corpus"), "train")
    assert len(pieces) > 4
    assert all(piece.seconds <= 7 for piece in pieces)
    heard = np.concatenate([read_audio(piece.audio) for piece in pieces])
    times = [tuple(map(float, piece.id.split("#t=")[1].split(","))) for piece in pieces]
    rebuilt = np.concatenate([long[round(start * 16_000) : round(end * 16_000)] for start, end in times])
    np.testing.assert_allclose(heard, rebuilt, atol=1e-4)
    for start, end in spoken:
        inside = [piece for piece in times if piece[0] - 0.1 <= start and end <= piece[1] + 0.1]
        assert len(inside) == 1, "no utterance is cut"
    (lines,) = build_timeline(read_labels(folder(recipe, "labels"))).values()
    assert [round(line.start, 2) for line in lines] == [round(start, 2) for start, _ in times]
    written = run(sys.executable, "-m", "data_prep.export_subtitles", str(recipe), str(tmp_path / "subtitles"))
    assert written.returncode == 0, written.stderr
    (subtitles,) = (tmp_path / "subtitles").glob("*.srt")
    assert subtitles.read_text() == srt(lines)
    reference = " ".join(SENTENCES[:16])
    forward, backward = (jiwer.wer(reference, " ".join(line.text for line in order)) for order in (lines, lines[::-1]))
    assert forward < backward - 0.2, f"the teacher hears the sentences in their order: {lines}"


def test_audio_without_any_transcript_trains_a_student(speech: Path, run: Run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, speech)
    source = f"corpus.sources=[{{audio: {speech}, name: spoken}}]"
    done = run(
        *sottovoce("run", str(recipe), source, "eval=null", "train.steps=2", "export.onnx=[fp32]", "budget=null")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(item.text is None for item in read_utterances(folder(recipe, "corpus"), "train", "validation", "test"))
    assert (folder(recipe, "export") / "model" / "onnx" / "encoder_model.onnx").is_file()
    assert "mean log-probability" in (folder(recipe, "report") / "report.html").read_text().lower()


def test_a_threshold_is_changed_without_labelling_again(finished: Path, speech: Path, run: Run, tmp_path: Path) -> None:
    recipe = write_labelled(tmp_path, speech, finished)
    done = run(*sottovoce("run", str(recipe), "--until", "quality", "quality.max_wer=0.3"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.endswith(": running")] == ["quality"]
    shown = json.loads((folder(recipe, "quality") / "quality.json").read_text())
    assert shown["dropped"].keys() == {"error rate above 0.3"}
    assert shown["kept"] + sum(shown["dropped"].values()) == 20
    strict = run(*sottovoce("run", str(recipe), "--until", "quality", "quality.min_logprob=-0.0"))
    assert strict.returncode == 1
    assert "no label of the train split is kept" in strict.stderr


def test_recordings_beyond_the_teachers_window_are_refused_with_the_setting_to_change(
    speech: Path, run: Run, tmp_path: Path
) -> None:
    clips = [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))]
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.flac", np.concatenate(clips[:6]), 16_000)
    recipe = write_recipe(tmp_path, speech)
    source = f"corpus.sources=[{{audio: {tmp_path / 'audio'}, name: spoken}}]"
    done = run(*sottovoce("run", str(recipe), source, "--until", "labels", "corpus.max_seconds=30"))
    assert done.returncode == 2
    assert "set corpus.max_seconds=7" in done.stderr
