"""The stages compress and heal as a user runs them, starting from finished labels."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.runtimes.modeling_sottovoce import SottovoceForConditionalGeneration
from eval.runtimes.torch_runtime import load_model
from recipes.engine.flow import student_folder
from recipes.schema.recipe import load_recipe
from tests.conftest import ROOT, TEACHER, Once
from tests.stages.conftest import Run, sottovoce, write_labelled

COMPRESS = (
    "compress={clips: 8, window: {seconds: 3}, vocabulary: {}, prune: {ffn_width: 512, decoder_ffn_width: 512}, "
    "low_rank: {preset: fast}}"
)
HEAL = (
    "heal={steps: 30, batch_size: 8, learning_rate: 1e-3, warmup_steps: 2, eval_steps: 30, save_steps: 5, workers: 0}"
)
SHORT = ["train=null", "eval.draft=0", COMPRESS, HEAL]


@pytest.fixture(scope="module")
def healed(once: Once, speech: Path, run: Run, finished: Path) -> Path:
    """The recipe of a run that is finished up to its healed student."""

    def heal(folder: Path) -> None:
        done = run(*sottovoce("run", str(write_labelled(folder, speech, finished)), "--until", "heal", *SHORT))
        assert done.returncode == 0, done.stderr
        ran = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(": running")]
        assert ran == ["compress", "heal"]

    return once("healed", heal) / "recipe.yaml"


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "small" / "heal" / "model" / "model.safetensors")


def test_healing_lowers_the_loss_of_a_compressed_student(healed: Path) -> None:
    root = healed.parent / "runs" / "small"
    losses = [row["loss"] for row in map(json.loads, (root / "heal" / "metrics.jsonl").open()) if "loss" in row]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    before, after = load_model(root / "compress" / "model"), load_model(root / "heal" / "model")
    assert isinstance(after, SottovoceForConditionalGeneration)
    assert after.config.low_rank == before.config.low_rank
    assert after.config.encoder_ffn_dim == 512
    name = next(iter(after.config.low_rank))
    assert not torch.equal(after.get_submodule(name)[0].weight, before.get_submodule(name)[0].weight)
    steps = json.loads((root / "compress" / "compression.json").read_text())["steps"]
    sizes = [step["parameters_m"]["encoder"] for step in steps]
    assert [step["name"] for step in steps] == ["student", "window", "vocabulary", "prune", "low_rank"]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4  # trimming the vocabulary does not change the encoder
    assert after.config.max_source_positions == 150
    assert after.config.vocab_size == load_model(TEACHER).config.vocab_size - 170  # timestamps beyond 3 s


def test_later_stages_take_the_healed_student(healed: Path) -> None:
    recipe = load_recipe(healed, SHORT)
    assert student_folder(recipe) == recipe.root / "heal" / "model"
    assert student_folder(recipe, before="heal") == recipe.root / "compress" / "model"
    assert student_folder(recipe, before="compress") == recipe.root / "student" / "model"
    plain = load_recipe(healed)
    assert student_folder(plain, before="compress") == student_folder(plain) == plain.root / "train" / "model"


def test_changed_heal_steps_do_not_make_compress_stale(healed: Path, run: Run) -> None:
    done = run(*sottovoce("stages", str(healed), *SHORT, "heal.steps=31"))
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "up to date" in lines["compress"]
    assert "stale: heal changed" in lines["heal"]


def test_stopped_healing_resumes_with_its_low_rank_pairs(healed: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(healed.parent / "runs", tmp_path / "runs")
    command = sottovoce("run", str(healed), "--until", "heal", *SHORT, f"runs={tmp_path / 'runs'}")
    (tmp_path / "runs" / "small" / "heal" / "stage.json").unlink()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "runs" / "small" / "heal.partial" / "checkpoints").glob("step-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "heal: stopped by SIGTERM, saved after step" in stderr
    assert run(*command).returncode == 0
    expected, found = weights(healed.parent / "runs"), weights(tmp_path / "runs")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_finished_student_is_cut_and_compressed_further(healed: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(healed.parent / "runs", tmp_path / "runs")
    finished_student = healed.parent / "runs" / "small" / "heal" / "model"
    further = [
        "train=null", f"student={{init: {finished_student}, decoder_layers: 1}}",
        "compress={clips: 4, window: {seconds: 2}}", HEAL.replace("steps: 30", "steps: 2"), f"runs={tmp_path / 'runs'}",
    ]  # fmt: skip
    done = run(*sottovoce("run", str(healed), "--until", "heal", *further))
    assert done.returncode == 0, done.stderr
    smaller, before = load_model(tmp_path / "runs" / "small" / "heal" / "model"), load_model(finished_student)
    assert (smaller.config.decoder_layers, smaller.config.max_source_positions) == (1, 100)
    assert (smaller.config.vocab_size, smaller.config.low_rank) == (before.config.vocab_size, before.config.low_rank)
    record = json.loads((tmp_path / "runs" / "small" / "heal" / "stage.json").read_text())
    assert record["counts"]["too_long"] > 0
    missing = run(*sottovoce("run", str(healed), "train=null", "student={init: nowhere, decoder_layers: 1}"))
    assert missing.returncode == 2
    assert "student.init: expected a folder at nowhere" in missing.stderr
