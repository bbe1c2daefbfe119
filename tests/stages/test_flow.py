"""All stages on a tiny corpus: their outputs, skipping what is current, killing and continuing, rerunning."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from data_prep.labels.label_store import read_labels
from recipes.engine.flow import active_stages
from recipes.schema.recipe import load_recipe
from tests.conftest import ROOT
from tests.stages.conftest import Run, sottovoce, write_recipe


def stage_folder(recipe: Path, name: str) -> Path:
    return recipe.parent / "runs" / "small" / name


def test_every_stage_writes_its_record_and_its_log(finished: Path) -> None:
    for stage in active_stages(load_recipe(finished)):
        record = json.loads((stage_folder(finished, stage.name) / "stage.json").read_text())
        assert record["status"] == "done"
        assert record["command"].startswith(stage.command)
        assert record["outputs"]
        assert not stage_folder(finished, f"{stage.name}.partial").exists()
        log = (stage_folder(finished, "logs") / f"{stage.name}.log").read_text()
        assert f"started: {record['command']}" in log.splitlines()[0]


def test_the_report_agrees_with_the_stage_files(finished: Path) -> None:
    report = json.loads((stage_folder(finished, "report") / "report.json").read_text())
    accuracy = json.loads((stage_folder(finished, "eval") / "wer.json").read_text())
    assert report["accuracy"] == accuracy
    names = ["teacher-torch-fp32", "student-torch-fp32", "onnx-fp32", "onnx-int8"]
    assert [row["name"] for row in accuracy["systems"]] == names
    assert [row["name"] for row in report["latency"]["variants"]] == names
    student, exported = accuracy["systems"][1], accuracy["systems"][2]
    for part in ("results", "noise", "long_form", "hallucination"):
        assert exported[part], part
        assert exported[part] == student[part], "the fp32 export and PyTorch agree"
    draft = accuracy["draft"]
    assert (draft["clips"], draft["equal_text"]) == (3, 3)
    assert draft["passes"] + draft["accepted"] >= draft["tokens"] > draft["passes"], "some drafts were accepted"
    assert all(row["kept"] for row in report["parity"]["artefacts"])
    page = (stage_folder(finished, "report") / "report.html").read_text()
    assert all(name in page for name in [*names, "The student as a draft"])


def test_labels_cover_train_and_validation_with_the_teachers_prompt(finished: Path) -> None:
    labels = read_labels(stage_folder(finished, "labels"))
    assert sorted(label.split for label in labels) == ["train"] * 16 + ["validation"] * 4
    assert all(label.plain.mean_logprob < 0 for label in labels)
    assert all(label.plain.tokens[: label.plain.prompt_length] == [257, 258, 260, 264] for label in labels)


def test_training_lowers_the_loss(finished: Path) -> None:
    lines = [json.loads(line) for line in (stage_folder(finished, "train") / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert [line["step"] for line in lines if "validation_wer" in line] == [4, 8]


def test_a_second_run_does_nothing_and_imports_no_heavy_package(finished: Path, run: Run) -> None:
    done = run(sys.executable, "-X", "importtime", *sottovoce("run", str(finished))[1:])
    assert done.returncode == 0
    assert done.stdout.count("up to date") == len(active_stages(load_recipe(finished))) + 1
    assert "nothing to do" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "recipes.engine.flow" in imported
    assert not imported & {"torch", "transformers", "datasets", "pyarrow", "numpy"}


def test_a_changed_setting_reruns_only_what_depends_on_it(finished: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.parent / "runs", tmp_path / "runs")
    overrides = [
        f"runs={tmp_path / 'runs'}",
        "eval.bootstrap=120",
        "budget.required=true",
        "budget.device=" + str(tmp_path / "b.yaml"),
    ]
    (tmp_path / "b.yaml").write_text("{name: b, description: d, source: s, limits: {size_mb: 0.001}}")
    done = run(*sottovoce("run", str(finished), *overrides))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "budget b: missed" in done.stderr
    ran = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(": running")]
    assert ran == ["eval", "report"]
    assert run(*sottovoce("run", str(finished), *overrides)).returncode == 3, (
        "a run without stale stages returns the same verdict"
    )


@pytest.mark.longest
def test_devices_are_emulated_and_only_the_required_one_sets_the_exit_status(
    finished: Path, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished.parent / "runs", tmp_path / "runs")
    budget = "{{name: {}, description: d, source: s, cpu: another, threads: 1, memory_mb: {}, limits: {{size_mb: 50}}}}"
    for name, memory_mb in (("tight", 60), ("roomy", 3000)):
        (tmp_path / f"{name}.yaml").write_text(budget.format(name, memory_mb))
    runs, device = f"runs={tmp_path / 'runs'}", f"budget.device={tmp_path / 'tight.yaml'}"
    both = [runs, device, f"budget.also=[{tmp_path / 'roomy.yaml'}]", "benchmark.clients=[2]"]
    done = run(*sottovoce("run", str(finished), *both, "budget.required=true"))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "tight: missed by every artefact (emulated)" in done.stdout
    assert "roomy: cheapest that passes: onnx-int8 (emulated)" in done.stdout
    ran = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(": running")]
    assert ran == ["benchmark", "report"]
    folder = tmp_path / "runs" / "small"
    latency = json.loads((folder / "benchmark" / "latency.json").read_text())
    assert [(row["devices"], row["threads"], row["memory_mb"]) for row in latency["emulated"]] == [
        (["tight"], 1, 60), (["roomy"], 1, 3000)
    ]  # fmt: skip
    assert [row["fits"] for row in latency["emulated"][0]["variants"]] == [False, False]
    assert all(row["clip_ms"] for row in latency["emulated"][1]["variants"])
    assert [row["clients"] for row in latency["concurrency"]] == [2, 2, 2, 2]
    assert {row["name"]: bool(row["placement"]) for row in latency["variants"]} == {
        "teacher-torch-fp32": False, "student-torch-fp32": False, "onnx-fp32": True, "onnx-int8": True
    }  # fmt: skip
    page = (folder / "report" / "report.html").read_text()
    assert "does not fit" in page
    assert "An emulation: measured on" in page
    device = f"budget.device={tmp_path / 'roomy.yaml'}"
    kept = [runs, device, f"budget.also=[{tmp_path / 'tight.yaml'}]", "benchmark.clients=[2]", "budget.required=true"]
    done = run(*sottovoce("run", str(finished), *kept))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "benchmark  up to date" in done.stdout


@pytest.mark.parametrize("audio", ["text", "speaker"])
def test_transcribe_prints_a_line_for_each_file(finished: Path, speech: Path, run: Run, audio: str) -> None:
    files = [str(file) for file in sorted((speech / "test").glob("*.flac"))[:2]]
    options = ["--format", "json"] if audio == "speaker" else []
    for model, precision in (
        (stage_folder(finished, "export") / "model", "int8"),
        (stage_folder(finished, "train") / "model", "fp32"),
    ):
        done = run(*sottovoce("transcribe", str(model), *files, "--precision", precision, *options))
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2


@pytest.mark.longest
def test_a_run_that_is_killed_in_every_stage_has_the_same_result(
    finished: Path, speech: Path, run: Run, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, speech)
    for stage in active_stages(load_recipe(recipe)):
        process = subprocess.Popen(
            sottovoce("run", str(recipe)),
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Kill a stage once it has partial results to continue from; stages that write none, as soon as they start.
        partial_result = {"train": "checkpoints/step-*", "labels": "parts/*.parquet", "eval": "hypotheses-*"}.get(
            stage.name, "stage.json"
        )
        deadline = time.monotonic() + 120
        partial, final = stage_folder(recipe, f"{stage.name}.partial"), stage_folder(recipe, stage.name)
        while not list(partial.glob(partial_result)) and not final.exists():
            assert time.monotonic() < deadline, f"{stage.name} did not start"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run(*sottovoce("run", str(recipe)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_labels(stage_folder(recipe, "labels")) == read_labels(stage_folder(finished, "labels"))
    expected, found = (
        load_file(stage_folder(run_recipe, "train") / "model" / "model.safetensors")
        for run_recipe in (finished, recipe)
    )
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected), "weights are bit-equal"
    for name, file in (
        ("export", "model/onnx/decoder_model_merged_quantized.onnx"),
        ("eval", "hypotheses-onnx-int8.json"),
    ):
        assert (stage_folder(recipe, name) / file).read_bytes() == (stage_folder(finished, name) / file).read_bytes()
    reports = [
        json.loads((stage_folder(run_recipe, "report") / "report.json").read_text())
        for run_recipe in (finished, recipe)
    ]
    for part in ("accuracy", "parity", "training"):
        one, other = (_without_command_and_time(report[part]) for report in reports)
        assert one == other, part


def _without_command_and_time(part: dict[str, object]) -> object:
    text = json.dumps(part, sort_keys=True)
    values = json.loads(text)
    values.pop("command", None)
    values.pop("seconds", None)
    for row in values.get("train", []):
        del row["seconds"], row["tokens_per_second"]
    return values


def test_a_label_set_that_cannot_be_pushed_is_one_line(finished: Path, run: Run) -> None:
    done = run(sys.executable, "-m", "data_prep.push_labels", str(finished), "nobody/no-such-set")
    assert done.returncode == 2
    assert "push to nobody/no-such-set: the Hub cannot be reached" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_stages_run_by_themselves_with_overrides(finished: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.parent / "runs", tmp_path / "runs")
    runs = f"runs={tmp_path / 'runs'}"
    done = run(sys.executable, "-m", "distill.student", str(finished), runs, "student.decoder_layers=1")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "runs" / "small" / "student" / "stage.json").read_text())
    assert record["metrics"]["decoder_layers_kept"] == [3]
    assert load_recipe(finished, [runs]).student.decoder_layers == 2
    refused = run(sys.executable, "-m", "distill.export", str(finished), runs)
    assert refused.returncode == 2
    assert "student is stale: student changed" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.longest
def test_every_runtime_runs_through_all_stages(finished: Path, speech: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.parent / "runs", tmp_path / "runs")
    exports = ["export.openvino=[fp16]", "export.ctranslate2=[int8]", "export.parity.min_equal_text.fp16=0.5"]
    exports += ["export.alignment_clips=2"]
    done = run(*sottovoce("run", str(finished), *exports, f"runs={tmp_path / 'runs'}"))
    assert done.returncode == 0, done.stderr
    for name in ("onnx-fp32", "onnx-int8", "openvino-fp16", "ctranslate2-int8"):
        assert name in done.stdout
    report = json.loads((tmp_path / "runs" / "small" / "report" / "report.json").read_text())
    assert "openvino-fp16" in json.dumps(report)
    model, clip = tmp_path / "runs" / "small" / "export" / "model", min((speech / "test").glob("*.flac"))
    more = ["--timestamps", "--previous", "names: Anouk, Wim", "--runtime", "ctranslate2"]
    transcribed = run(*sottovoce("transcribe", str(model), str(clip), *more))
    assert transcribed.returncode == 0, transcribed.stderr
    assert len(transcribed.stdout.splitlines()) == 1
    folder = tmp_path / "runs" / "small" / "export"
    chosen = json.loads((folder / "alignment.json").read_text())
    assert chosen["strings"] == 2
    assert chosen["error_ms"] <= min(chosen["each_ms"].values())
    for file in ("generation_config.json", "onnx/generation_config.json", "ctranslate2-int8/config.json"):
        assert json.loads((folder / "model" / file).read_text())["alignment_heads"] == chosen["heads"], file
    assert json.loads((folder / "model" / "config.json").read_text())["median_filter_width"] == chosen["width"]


def test_an_exporter_that_is_not_installed_is_named(finished: Path, run: Run, tmp_path: Path) -> None:
    if find_spec("litert_torch") is not None:
        pytest.skip("litert-torch is installed")
    shutil.copytree(finished.parent / "runs", tmp_path / "runs")
    done = run(*sottovoce("run", str(finished), "export.tflite=[int8]", f"runs={tmp_path / 'runs'}"))
    assert done.returncode == 2
    assert "export.tflite: needs the package" in done.stderr
    assert "pip install 'sottovoce[tflite]'" in done.stderr
