"""The trainer as a user runs it: the same losses by every way, resumed to the bit, stopped and starved."""

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
    """A recipe whose labels hold the whole distribution, and whose student is cut."""

    def label(folder: Path) -> None:
        done = run(*sottovoce("run", str(write_recipe(folder, speech)), "--until", "student", *LABELS))
        assert done.returncode == 0, done.stderr

    return once("labelled", label) / "recipe.yaml"


def trained(labelled: Path, place: Path, *overrides: str) -> list[str]:
    """The command that trains in a copy of the labelled run."""
    if not (place / "runs").exists():
        shutil.copytree(labelled.parent / "runs", place / "runs")
    return sottovoce("run", str(labelled), "--until", "train", *LABELS, *STEPS, f"runs={place / 'runs'}", *overrides)


def losses(place: Path, key: str = "loss") -> list[float]:
    file = place / "runs" / "small" / "train" / "metrics.jsonl"
    return [row[key] for row in map(json.loads, file.read_text().splitlines()) if key in row]


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "runs" / "small" / "train" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def plain(labelled: Path, run: Run, once: Once) -> Path:
    """An uninterrupted run with a live teacher."""

    def train(folder: Path) -> None:
        done = run(*trained(labelled, folder))
        assert done.returncode == 0, done.stderr

    return once("plain", train)


GOLDEN = [
    1.351552, 1.120565, 0.865909, 0.58721, 0.354524, 0.355301, 0.323255, 0.356094, 0.194572, 0.23783, 0.152262,
    0.248643, 0.123005, 0.181086, 0.157063, 0.116838, 0.139397, 0.136616, 0.114627, 0.104992,
]  # fmt: skip


@pytest.fixture(scope="module")
def longer(labelled: Path, run: Run, once: Once) -> Path:
    """An uninterrupted run of more steps: sums that depend on the order of threads showed after twenty."""

    def train(folder: Path) -> None:
        assert run(*trained(labelled, folder, *LONGER)).returncode == 0

    return once("longer", train)


def test_the_first_losses_are_golden(labelled: Path, run: Run, tmp_path: Path) -> None:
    assert run(*trained(labelled, tmp_path / "a", "train.steps=20", "train.eval_steps=20")).returncode == 0
    np.testing.assert_allclose(losses(tmp_path / "a"), GOLDEN, rtol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (["train.teacher=stored"], 1e-4),
        (["train.cache_encoder=true"], 5e-3),  # states are kept in fp16
        (["train.micro_batch_size=1"], 1e-4),
        (["train.micro_batch_size=auto", "train.workers=2"], 1e-4),
        (["train.gradient_checkpointing=true"], 1e-4),
    ],
)
def test_every_way_has_the_same_losses(
    plain: Path, labelled: Path, run: Run, tmp_path: Path, overrides: list[str], tolerance: float
) -> None:
    done = run(*trained(labelled, tmp_path / "other", *overrides))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "other"), losses(plain), rtol=tolerance)


def test_two_processes_train_as_one(longer: Path, labelled: Path, run: Run, tmp_path: Path) -> None:
    done = run(*trained(labelled, tmp_path / "two", *LONGER, two_processes(labelled)))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "two" / "runs" / "small" / "train" / "stage.json").read_text())
    assert record["metrics"]["processes"] == 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(longer), rtol=1e-4)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_stopped_at_any_moment_the_weights_are_those_of_an_uninterrupted_run(
    longer: Path, labelled: Path, run: Run, tmp_path: Path, how: str
) -> None:
    place, other = tmp_path / "other", {"SIGTERM": "train.workers=1", "SIGKILL": "train.save_steps=1"}[how]
    command = trained(labelled, place, *LONGER, other)
    log = place / "runs" / "small" / "train.partial" / "metrics.jsonl"

    def steps() -> int:
        return log.read_text().count('"loss"') if log.is_file() else 0

    for _ in range(2):
        stood = steps()
        process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while steps() <= stood:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if how == "SIGKILL":
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        else:
            os.kill(process.pid, signal.SIGTERM)
            _, shown = process.communicate()
            assert process.returncode == 1
            assert "told to stop, saved after step" in shown
            assert "Traceback" not in shown
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr + done.stdout
    assert losses(place) == losses(longer)
    assert all(weights(longer)[name].equal(tensor) for name, tensor in weights(place).items())


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.lora={rank: 4}", "train.learning_rate=1e-2"],
        ["train.optimizer=adamw_8bit", "train.ema_decay=0.5", "train.schedule=cosine", "train.eval_steps=4"],
        ["train.teacher=live", "train.quantize_teacher=8", "train.freeze_encoder=false", "train.select=loss"],
        ["train.kl_weight=0", "train.precision=bf16", "train.timestamps=0.5", "train.previous_text=0.5"],
    ],
)
def test_the_variants_learn_and_leave_a_plain_student(
    labelled: Path, run: Run, tmp_path: Path, overrides: list[str]
) -> None:
    done = run(*trained(labelled, tmp_path / "a", "train.steps=12", "train.eval_steps=12", *overrides))
    assert done.returncode == 0, done.stderr
    found = losses(tmp_path / "a")
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
    student = load_model(tmp_path / "a" / "runs" / "small" / "train" / "model")
    before = load_model(labelled.parent / "runs" / "small" / "student" / "model")
    assert student.state_dict().keys() == before.state_dict().keys()
    assert any(not one.equal(other) for one, other in zip(student.parameters(), before.parameters(), strict=True))
    encoders = zip(student.model.encoder.parameters(), before.model.encoder.parameters(), strict=True)
    assert all(one.equal(other) for one, other in encoders) != ("train.freeze_encoder=false" in overrides)
    figures = ("loss", "wer") if "train.select=loss" in overrides else ("wer", "loss")
    validated = zip(*(losses(tmp_path / "a", f"validation_{figure}") for figure in figures), strict=True)
    best = json.loads((tmp_path / "a" / "runs" / "small" / "train" / "stage.json").read_text())["metrics"]["best"]
    assert tuple(best[figure] for figure in figures) == min(validated)


def test_augmented_audio_trains(labelled: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "a.wav", np.random.default_rng(0).normal(0, 0.1, 9_000), 16_000)
    augment = f"{{speed: [0.9, 1.1], noise: {tmp_path / 'noise'}, rooms: {tmp_path / 'noise'}, mel_masks: 2}}"
    done = run(*trained(labelled, tmp_path / "a", f"train.augment={augment}"))
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "a")) == 6


def test_losses_that_are_not_numbers_are_skipped_then_end_the_run(labelled: Path, run: Run, tmp_path: Path) -> None:
    wild = ["train.learning_rate=1e30", "train.max_grad_norm=1e30", "train.warmup_steps=0", "train.max_skipped=2"]
    done = run(*trained(labelled, tmp_path / "a", *wild))
    assert done.returncode == 1
    assert "the loss was not a number in 3 steps" in done.stderr
    assert "spoken/train/" in done.stderr
    assert "Traceback" not in done.stderr


def test_stored_needs_logits_of_its_temperature(labelled: Path, run: Run, tmp_path: Path) -> None:
    done = run(*trained(labelled, tmp_path / "a", "train.teacher=stored", "train.temperature=3"))
    assert done.returncode == 2
    assert "train.temperature" in done.stderr


def test_a_dead_process_ends_the_run_with_its_message(labelled: Path, tmp_path: Path) -> None:
    """Killed from outside, as for want of memory: the others do not wait for ever."""
    command = trained(labelled, tmp_path / "a", two_processes(labelled), "train.steps=10000")
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
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 1
    last = shown.strip().splitlines()[-1]
    assert "train      failed: " in last
    assert "Connection" in last, "what the other process saw"
    assert "goes on from here" in last


def test_what_stops_one_of_two_processes_is_said_last(labelled: Path, run: Run, tmp_path: Path) -> None:
    done = run(*trained(labelled, tmp_path / "a", two_processes(labelled), "train.batch_size=1"))
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
def test_deepspeed_trains_and_resumes_as_one_process(
    plain: Path, labelled: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU accelerate starts DeepSpeed with one process alone."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "deepspeed.yaml").write_text(DEEPSPEED)
    launch = f"launch={tmp_path / 'deepspeed.yaml'}"
    done = run(*trained(labelled, tmp_path / "a", launch))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "a"), losses(plain), rtol=1e-4)


@pytest.mark.parametrize("key", ["ema_decay=0.9", "micro_batch_size=auto", "optimizer=adamw_8bit"])
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs `pip install deepspeed`, which builds for minutes")
def test_what_a_sharded_student_cannot_do_is_refused(
    labelled: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "deepspeed.yaml").write_text(DEEPSPEED)
    done = run(*trained(labelled, tmp_path / "a", f"launch={tmp_path / 'deepspeed.yaml'}", f"train.{key}"))
    assert done.returncode == 2
    assert f"train.{key.split('=')[0]}" in done.stderr.strip().splitlines()[-1]
