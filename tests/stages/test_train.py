"""The train stage as a user runs it: equal losses for all variants, bit-equal resumption, signals and failures."""

import json
import os
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from eval.runtimes.torch_runtime import load_model
from tests.conftest import ROOT, Once
from tests.stages.conftest import Run, sottovoce, write_recipe
from tests.stages.test_labels import two_processes

LABELS = ["labels.top_k=586", "labels.timestamps=true"]
LONGER = ["train.steps=50", "train.eval_steps=25", "train.ema_decay=0.9", "train.timestamps=0.5"]
STEPS = ["train.steps=6", "train.eval_steps=6", "train.save_steps=2"]


@pytest.fixture(scope="module")
def labelled(once: Once, speech: Path, run: Run) -> Path:
    """A recipe whose labels have the whole distribution, and whose student has been cut."""

    def label(folder: Path) -> None:
        done = run(*sottovoce("run", str(write_recipe(folder, speech)), "--until", "student", *LABELS))
        assert done.returncode == 0, done.stderr

    return once("labelled", label) / "recipe.yaml"


def train_command(labelled: Path, folder: Path, *overrides: str) -> list[str]:
    """Copy the labelled run to `folder`, and return the command that trains there."""
    if not (folder / "runs").exists():
        shutil.copytree(labelled.parent / "runs", folder / "runs")
    return sottovoce("run", str(labelled), "--until", "train", *LABELS, *STEPS, f"runs={folder / 'runs'}", *overrides)


def losses(folder: Path, key: str = "loss") -> list[float]:
    file = folder / "runs" / "small" / "train" / "metrics.jsonl"
    return [row[key] for row in map(json.loads, file.read_text().splitlines()) if key in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / "small" / "train" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def plain(labelled: Path, run: Run, once: Once) -> Path:
    """An uninterrupted run with a live teacher."""

    def train(folder: Path) -> None:
        done = run(*train_command(labelled, folder))
        assert done.returncode == 0, done.stderr

    return once("plain", train)


GOLDEN = [
    1.351552, 1.120565, 0.865909, 0.58721, 0.354524, 0.355301, 0.323255, 0.356094, 0.194572, 0.23783, 0.152262,
    0.248643, 0.123005, 0.181086, 0.157063, 0.116838, 0.139397, 0.136616, 0.114627, 0.104992,
]  # fmt: skip


@pytest.fixture(scope="module")
def longer(labelled: Path, run: Run, once: Once) -> Path:
    """An uninterrupted run of more steps: sums that depend on the order of threads differ after twenty."""

    def train(folder: Path) -> None:
        assert run(*train_command(labelled, folder, *LONGER)).returncode == 0

    return once("longer", train)


def test_the_first_losses_are_golden(labelled: Path, run: Run, tmp_path: Path) -> None:
    assert run(*train_command(labelled, tmp_path / "a", "train.steps=20", "train.eval_steps=20")).returncode == 0
    np.testing.assert_allclose(losses(tmp_path / "a"), GOLDEN, rtol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (["train.teacher=stored"], 1e-4),
        (["train.cache_encoder=true"], 5e-3),  # states are stored as fp16
        (["train.micro_batch_size=1"], 1e-4),
        (["train.micro_batch_size=auto", "train.workers=2"], 1e-4),
        (["train.gradient_checkpointing=true"], 1e-4),
    ],
)
def test_all_variants_have_the_same_losses(
    plain: Path, labelled: Path, run: Run, tmp_path: Path, overrides: list[str], tolerance: float
) -> None:
    done = run(*train_command(labelled, tmp_path / "other", *overrides))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "other"), losses(plain), rtol=tolerance)


def test_two_processes_train_like_one(longer: Path, labelled: Path, run: Run, tmp_path: Path) -> None:
    done = run(*train_command(labelled, tmp_path / "two", *LONGER, two_processes(labelled)))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "two" / "runs" / "small" / "train" / "stage.json").read_text())
    assert record["metrics"]["processes"] == 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(longer), rtol=1e-4)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_stopped_at_any_moment_the_weights_are_those_of_an_uninterrupted_run(
    longer: Path, labelled: Path, run: Run, tmp_path: Path, how: str
) -> None:
    folder, override = tmp_path / "other", {"SIGTERM": "train.workers=1", "SIGKILL": "train.save_steps=1"}[how]
    command = train_command(labelled, folder, *LONGER, override)
    log = folder / "runs" / "small" / "train.partial" / "metrics.jsonl"

    def steps() -> int:
        return log.read_text().count('"loss"') if log.is_file() else 0

    for _ in range(2):
        before = steps()
        process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while steps() <= before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if how == "SIGKILL":
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        else:
            os.kill(process.pid, signal.SIGTERM)
            _, stderr = process.communicate()
            assert process.returncode == 1
            assert "stopped by SIGTERM, saved after step" in stderr
            assert "Traceback" not in stderr
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr + done.stdout
    assert losses(folder) == losses(longer)
    assert all(weights(longer)[name].equal(tensor) for name, tensor in weights(folder).items())


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.lora={rank: 4}", "train.learning_rate=1e-2"],
        ["train.optimizer=adamw_8bit", "train.ema_decay=0.5", "train.schedule=cosine", "train.eval_steps=4"],
        ["train.teacher=live", "train.quantize_teacher=8", "train.freeze_encoder=false", "train.select=loss"],
        ["train.kl_weight=0", "train.precision=bf16", "train.timestamps=0.5", "train.previous_text=0.5"],
    ],
)
def test_the_variants_learn_and_save_a_plain_whisper_model(
    labelled: Path, run: Run, tmp_path: Path, overrides: list[str]
) -> None:
    done = run(*train_command(labelled, tmp_path / "a", "train.steps=12", "train.eval_steps=12", *overrides))
    assert done.returncode == 0, done.stderr
    training_losses = losses(tmp_path / "a")
    assert sum(training_losses[-3:]) < 0.9 * sum(training_losses[:3])
    student = load_model(tmp_path / "a" / "runs" / "small" / "train" / "model")
    before = load_model(labelled.parent / "runs" / "small" / "student" / "model")
    assert student.state_dict().keys() == before.state_dict().keys()
    assert any(not new.equal(old) for new, old in zip(student.parameters(), before.parameters(), strict=True))
    encoders = zip(student.model.encoder.parameters(), before.model.encoder.parameters(), strict=True)
    assert all(new.equal(old) for new, old in encoders) != ("train.freeze_encoder=false" in overrides)
    figures = ("loss", "wer") if "train.select=loss" in overrides else ("wer", "loss")
    validated = zip(*(losses(tmp_path / "a", f"validation_{figure}") for figure in figures), strict=True)
    best = json.loads((tmp_path / "a" / "runs" / "small" / "train" / "stage.json").read_text())["metrics"]["best"]
    assert tuple(best[figure] for figure in figures) == min(validated)


def test_augmented_audio_trains(labelled: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "a.wav", np.random.default_rng(0).normal(0, 0.1, 9_000), 16_000)
    augment = f"{{speed: [0.9, 1.1], noise: {tmp_path / 'noise'}, rooms: {tmp_path / 'noise'}, mel_masks: 2}}"
    done = run(*train_command(labelled, tmp_path / "a", f"train.augment={augment}"))
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "a")) == 6


def test_too_many_steps_whose_loss_is_not_a_number_end_the_run(labelled: Path, run: Run, tmp_path: Path) -> None:
    wild = ["train.learning_rate=1e30", "train.max_grad_norm=1e30", "train.warmup_steps=0", "train.max_skipped=2"]
    done = run(*train_command(labelled, tmp_path / "a", *wild))
    assert done.returncode == 1
    assert "the loss was not a number in 3 steps" in done.stderr
    assert "spoken/train/" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_stored_teacher_needs_labels_of_its_temperature(labelled: Path, run: Run, tmp_path: Path) -> None:
    done = run(*train_command(labelled, tmp_path / "a", "train.teacher=stored", "train.temperature=3"))
    assert done.returncode == 2
    assert "train.temperature" in done.stderr


def test_a_dead_process_ends_the_run_with_its_message(labelled: Path, tmp_path: Path) -> None:
    """A process is killed from outside, as the out-of-memory killer does: the others must not wait for ever."""
    command = train_command(labelled, tmp_path / "a", two_processes(labelled), "train.steps=10000")
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "a" / "runs" / "small" / "train.partial" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    leaves = [child for child in psutil.Process(process.pid).children(recursive=True) if not child.children()]
    leaves[-1].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    last = stderr.strip().splitlines()[-1]
    assert "train      failed: " in last
    assert "Connection" in last, "the error of the other process"
    assert "to continue from here" in last


def test_the_error_that_stops_two_processes_is_the_last_line(labelled: Path, run: Run, tmp_path: Path) -> None:
    done = run(*train_command(labelled, tmp_path / "a", two_processes(labelled), "train.batch_size=1"))
    assert done.returncode == 2
    assert "expected at least one utterance for each of 2 processes" in done.stderr.strip().splitlines()[-1]


DEEPSPEED = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
use_cpu: true
num_processes: 1
mixed_precision: "no"
deepspeed_config: {zero_stage: 2, gradient_accumulation_steps: 1, offload_optimizer_device: none}
"""


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs `pip install deepspeed`, which builds for minutes")
def test_deepspeed_trains_like_one_process(
    plain: Path, labelled: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, accelerate starts DeepSpeed with a single process only."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "deepspeed.yaml").write_text(DEEPSPEED)
    launch = f"launch={tmp_path / 'deepspeed.yaml'}"
    done = run(*train_command(labelled, tmp_path / "a", launch))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "a"), losses(plain), rtol=1e-4)


@pytest.mark.parametrize("key", ["ema_decay=0.9", "micro_batch_size=auto", "optimizer=adamw_8bit"])
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs `pip install deepspeed`, which builds for minutes")
def test_options_that_need_the_whole_student_are_refused_when_it_is_sharded(
    labelled: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "deepspeed.yaml").write_text(DEEPSPEED)
    done = run(*train_command(labelled, tmp_path / "a", f"launch={tmp_path / 'deepspeed.yaml'}", f"train.{key}"))
    assert done.returncode == 2
    assert f"train.{key.split('=')[0]}" in done.stderr.strip().splitlines()[-1]
