"""Stage tests of corpus, labels and quality: broken audio, kills, several processes, long and untranscribed audio."""

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
from data_prep.labels.timeline import build_timeline
from eval.audio.recordings import read_audio
from eval.audio.utterances import read_utterances
from eval.decoding.subtitles import format_subtitles
from tests.conftest import ROOT, SENTENCES, Once
from tests.stages.conftest import Run, sottovoce, write_labelled, write_recipe

TWO_PROCESSES = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 1
num_processes: 2
"""


def folder(recipe: Path, stage: str = "") -> Path:
    """Return the folder of a stage, or of the whole run, of the small recipe."""
    return recipe.parent / "runs" / "small" / stage


def stored(recipe: Path) -> list[Label]:
    """Read all labels of the run with their stored logits."""
    return read_labels(folder(recipe, "labels"), distributions=True)


def same(labels: list[Label], expected: list[Label]) -> bool:
    """Compare labels and stored logits, the latter to 1e-4, because results differ with the number of threads."""
    if labels != expected:
        return False
    pairs = [(label.plain.distribution, row.plain.distribution) for label, row in zip(labels, expected, strict=True)]
    return all(
        actual is not None and wanted is not None and np.array_equal(actual.ids_NK, wanted.ids_NK)
        and np.allclose(actual.logits_NK, wanted.logits_NK, atol=1e-4)
        for actual, wanted in pairs
    )  # fmt: skip


OVERRIDES = ["--until", "labels", "labels.batch_size=2", "labels.top_k=4", "labels.timestamps=true"]


@pytest.fixture(scope="module")
def uninterrupted(once: Once, speech: Path, run: Run) -> list[Label]:
    """Labels of an uninterrupted run with one process."""

    def label(folder: Path) -> None:
        done = run(*sottovoce("run", str(write_recipe(folder, speech)), *OVERRIDES))
        assert done.returncode == 0, done.stderr

    return stored(once("uninterrupted", label) / "recipe.yaml")


def two_processes(recipe: Path) -> str:
    """Return the override that labels with two processes."""
    (recipe.parent / "two.yaml").write_text(TWO_PROCESSES)
    return f"launch={recipe.parent / 'two.yaml'}"


def without_scores(labels: list[Label]) -> list[tuple[object, ...]]:
    """Return the fields that are equal bit by bit, whatever the number of threads."""
    return [
        (row.id, row.plain.tokens, row.timed and row.timed.tokens, row.text, row.language, row.error) for row in labels
    ]


def test_two_processes_give_the_labels_of_one(
    uninterrupted: list[Label], speech: Path, run: Run, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, speech)
    done = run(*sottovoce("run", str(recipe), *OVERRIDES, two_processes(recipe)))
    assert done.returncode == 0, done.stderr
    assert json.loads((folder(recipe, "labels") / "stage.json").read_text())["metrics"]["processes"] == 2
    assert without_scores(stored(recipe)) == without_scores(uninterrupted)


@pytest.mark.parametrize("processes", [1, 2])
def test_no_label_is_lost_or_doubled_by_kills_at_random_moments(
    uninterrupted: list[Label], speech: Path, run: Run, tmp_path: Path, processes: int
) -> None:
    recipe = write_recipe(tmp_path, speech)
    launch = [two_processes(recipe)] if processes == 2 else []
    kill_while_labelling(sottovoce("run", str(recipe), *OVERRIDES, *launch), folder(recipe), kills=2, batches=10)
    done = run(*sottovoce("run", str(recipe), *OVERRIDES, *launch))
    assert done.returncode == 0, done.stderr
    if processes == 1:
        assert same(stored(recipe), uninterrupted)
    assert without_scores(stored(recipe)) == without_scores(uninterrupted)


def kill_while_labelling(command: list[str], runs: Path, kills: int, batches: int, seed: int = 0) -> list[int]:
    """Start the command `kills` times and kill its process group, each time some batches later.

    Returns the number of parts that existed after each kill.
    """
    draw, parts = random.Random(seed), []
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
        parts.append(len(list(runs.glob("labels.partial/parts/*.parquet"))))
    return parts


def write_corpus(folder: Path, speech: Path) -> tuple[set[str], set[str]]:
    """Write 112 files: 82 good ones, some in unusual formats, and 30 that cannot be used; return the names of both."""
    folder.mkdir()
    good, clips = set(), [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))]
    for number in range(78):
        good.add(f"good-{number:02d}.flac")
        soundfile.write(folder / f"good-{number:02d}.flac", clips[number % 16][: 8_000 + 100 * number], 16_000)
    for name, samples, rate, subtype in (
        ("stereo 48k.wav", np.stack([np.repeat(clips[0], 3)] * 2, 1), 48_000, "PCM_16"),
        ("telephone.wav", clips[1][::2], 8_000, "PCM_16"),
        ("studio-24.wav", clips[2], 16_000, "PCM_24"),
        ("été 音声.flac", clips[3], 16_000, "PCM_16"),
    ):
        good.add(name)
        soundfile.write(folder / name, samples, rate, subtype=subtype)
    broken = set()
    for number in range(5):
        for name, content in (
            (f"empty-{number}.wav", b""), (f"text-{number}.wav", b"this is not audio, whatever its name says"),
            (f"short-{number}.flac", (folder / f"good-{number:02d}.flac").read_bytes()[:3_000]),
        ):  # fmt: skip
            (folder / name).write_bytes(content)
            broken.add(name)
        for name, samples in (
            (f"nan-{number}.wav", np.where(np.arange(len(clips[4])) == 99, np.nan, clips[4])),
            (f"one-{number}.wav", clips[5][:1]),
        ):
            soundfile.write(folder / name, samples, 16_000, subtype="FLOAT")
            broken.add(name)
    soundfile.write(folder / "silence.flac", np.zeros(600 * 16_000, np.float32), 16_000)
    for number in range(4):
        (folder / f"gone-{number}.wav").symlink_to(folder / "nowhere.wav")
    return good, broken | {"silence.flac", *(f"gone-{number}.wav" for number in range(4))}


def test_broken_files_are_reported_and_the_others_labelled(speech: Path, run: Run, tmp_path: Path) -> None:
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


def test_a_long_recording_is_split_and_its_labels_become_subtitles_in_order(
    speech: Path, run: Run, tmp_path: Path
) -> None:
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
    samples = np.concatenate([read_audio(piece.audio) for piece in pieces])
    times = [tuple(map(float, piece.id.split("#t=")[1].split(","))) for piece in pieces]
    rebuilt = np.concatenate([long[round(start * 16_000) : round(end * 16_000)] for start, end in times])
    np.testing.assert_allclose(samples, rebuilt, atol=1e-4)
    for start, end in spoken:
        inside = [piece for piece in times if piece[0] - 0.1 <= start and end <= piece[1] + 0.1]
        assert len(inside) == 1, "no utterance is cut"
    (cues,) = build_timeline(read_labels(folder(recipe, "labels"))).values()
    assert [round(start, 2) for start, _, _ in cues] == [round(start, 2) for start, _ in times]
    written = run(sys.executable, "-m", "data_prep.export_subtitles", str(recipe), str(tmp_path / "subtitles"))
    assert written.returncode == 0, written.stderr
    (subtitles,) = (tmp_path / "subtitles").glob("*.srt")
    assert subtitles.read_text() == format_subtitles(cues, "srt")
    reference = " ".join(SENTENCES[:16])
    forward, backward = (jiwer.wer(reference, " ".join(text for _, _, text in order)) for order in (cues, cues[::-1]))
    assert forward < backward - 0.2, f"the subtitles are in the order of the sentences: {cues}"


@pytest.mark.longest
def test_audio_without_any_transcript_trains_a_student(speech: Path, run: Run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, speech)
    source = f"corpus.sources=[{{audio: {speech}, name: spoken}}]"
    options = ["eval.reference=teacher", "train.steps=2", "export.onnx=[fp32]", "benchmark=null", "budget=null"]
    done = run(*sottovoce("run", str(recipe), source, *options))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(item.text is None for item in read_utterances(folder(recipe, "corpus"), "train", "validation", "test"))
    assert (folder(recipe, "export") / "model" / "onnx" / "encoder_model.onnx").is_file()
    teacher, student = json.loads((folder(recipe, "eval") / "wer.json").read_text())["systems"][:2]
    assert teacher["macro"]["wer"] == 0, "the teacher is compared with itself"
    assert student["macro"]["wer"] > 0
    report = (folder(recipe, "report") / "report.html").read_text()
    assert "The test recordings have no transcripts" in report
    assert "mean log-probability" in report.lower()


def test_a_threshold_is_changed_without_labelling_again(finished: Path, speech: Path, run: Run, tmp_path: Path) -> None:
    recipe = write_labelled(tmp_path, speech, finished)
    done = run(*sottovoce("run", str(recipe), "--until", "quality", "quality.max_wer=0.3"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.endswith(": running")] == ["quality"]
    summary = json.loads((folder(recipe, "quality") / "quality.json").read_text())
    assert summary["dropped"].keys() == {"error rate above 0.3"}
    assert summary["kept"] + sum(summary["dropped"].values()) == 20
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
