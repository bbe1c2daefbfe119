"""The release of a finished run: its files, its model card, and when it may be pushed."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from distill.publishing.model_card import card_body, card_metadata
from distill.publishing.release_folder import make_paths_relative
from distill.release import card_facts
from eval.audio.recordings import read_audio
from recipes.schema.recipe import load_recipe, validate_recipe
from tests.conftest import ROOT, Once
from tests.stages.conftest import Run, sottovoce
from tests.stages.hub import running_hub

TOKEN = "hf_" + "neverShown" * 3
SECTION = (
    "release={licence: apache-2.0, artefacts: {onnx: [int8]}, data_licences: {spoken: cc0-1.0}, limits: [No numbers.]}"
)
EXPECTED = {
    "README.md", "SHA256SUMS", "added_tokens.json", "config.json", "generation_config.json", "merges.txt",
    "model.safetensors", "normalizer.json", "onnx/decoder_model_merged_quantized.onnx",
    "onnx/encoder_model_quantized.onnx", "onnx/generation_config.json", "preprocessor_config.json",
    "processor_config.json", "recipe.yaml", "report.html", "report.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
}  # fmt: skip


class Released:
    """A finished run with a release. Calling it runs the command `release` with more options."""

    def __init__(self, recipe: Path, runs: Path, run: Run):
        self.recipe, self.runs, self._run = recipe, runs, run
        self.root, self.folder = runs / "small", runs / "small" / "release"

    def __call__(self, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        variables = [f"{name}={value}" for name, value in environment.items()]
        return self._run("env", *variables, *sottovoce("release", str(self.recipe), f"runs={self.runs}", *options))

    def copy(self, folder: Path) -> "Released":
        shutil.copytree(self.runs, folder / "runs")
        return Released(self.recipe, folder / "runs", self._run)

    def record(self, stage: str, **changes: object) -> None:
        file = self.root / stage / "stage.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def committed(self) -> "Released":
        """Change the records as if all stages had been run with committed code."""
        for record in self.root.glob("*/stage.json"):
            self.record(record.parent.name, commit="0123abc")
        return self


@pytest.fixture(scope="module")
def released(finished: Path, run: Run, once: Once) -> Released:
    def release(folder: Path) -> None:
        shutil.copytree(finished.parent / "runs", folder / "runs")
        done = Released(finished, folder / "runs", run)(SECTION)
        assert done.returncode == 0, done.stderr

    return Released(finished, once("released", release) / "runs", run)


def test_the_folder_holds_only_what_the_recipe_chooses(released: Released, run: Run) -> None:
    found = {file.relative_to(released.folder).as_posix() for file in released.folder.rglob("*") if file.is_file()}
    assert found == EXPECTED | {"stage.json"}
    weights = released.root / "train" / "model" / "model.safetensors"
    assert (released.folder / "model.safetensors").read_bytes() == weights.read_bytes()
    recipe = load_recipe(released.recipe, [f"runs={released.runs}", SECTION])
    values = make_paths_relative(yaml.safe_dump(recipe.model_dump(mode="json")), ROOT)
    found = yaml.safe_load((released.folder / "recipe.yaml").read_text())
    assert validate_recipe(found, "released") == validate_recipe(yaml.safe_load(values), "ours")
    assert found["teacher"]["model"] == "recipes/demo/teacher"
    checked = run("sh", "-c", f"cd {released.folder} && sha256sum -c SHA256SUMS")
    assert checked.returncode == 0, checked.stdout
    assert len(checked.stdout.splitlines()) == len(EXPECTED) - 1
    done = run(*sottovoce("run", str(released.recipe), f"runs={released.runs}", SECTION))
    assert "release    up to date" in done.stdout
    assert f"release: {released.folder}" in done.stdout


@pytest.mark.parametrize(("runtime", "precision"), [("onnx", "int8"), ("torch", "fp32")])
def test_the_release_transcribes_as_the_run_does(
    released: Released, speech: Path, run: Run, runtime: str, precision: str
) -> None:
    clips = [str(file) for file in sorted((speech / "test").glob("*.flac"))]
    options = ["--runtime", runtime, "--precision", precision]
    stage = "export" if runtime == "onnx" else "train"
    from_run, from_release = (
        run(*sottovoce("transcribe", str(folder), *clips, *options))
        for folder in (released.root / stage / "model", released.folder)
    )
    assert from_release.returncode == 0, from_release.stderr
    assert from_release.stdout == from_run.stdout
    assert len(from_release.stdout.splitlines()) == 4


def cells(card: str, name: str) -> list[list[str]]:
    """Return the cells of every table row that begins with `name`."""
    return [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in card.splitlines() if line.startswith(f"| {name} |")
    ]


def test_every_figure_of_the_card_is_that_of_the_report(released: Released) -> None:
    report = json.loads((released.folder / "report.json").read_text())
    card = (released.folder / "README.md").read_text()
    systems = {row["name"]: row for row in report["accuracy"]["systems"]}
    variants = {row["name"]: row for row in report["latency"]["variants"]}
    for name in ("teacher-torch-fp32", "student-torch-fp32", "onnx-int8"):
        accuracy, noise, long_form, latency = cells(card, name)[:4]
        result = systems[name]["results"]["spoken"]
        wer, cer = result["wer"], result["cer"]
        assert accuracy[0] == f"{wer['value']:.1f} ({wer['low']:.1f} to {wer['high']:.1f})"
        assert accuracy[2] == f"{cer['value']:.1f} ({cer['low']:.1f} to {cer['high']:.1f})"
        assert accuracy[3:] == [str(result[kind]) for kind in ("substitutions", "deletions", "insertions")]
        assert [cell.split()[0] for cell in noise] == [f"{row['wer']['value']:.1f}" for row in systems[name]["noise"]]
        separate = systems[name]["long_form"]["spoken"]["separate"]["wer"]["value"]
        assert f"{separate:.1f}" in [cell.split()[0] for cell in long_form]
        row = variants[name]
        measured = [row["size_mb"], row["peak_rss_mb"], row["clip_ms"]["p50"], row["clip_ms"]["p95"],
                    row["first_token_ms"]["p50"], row["rtf"], row["speedup"]]  # fmt: skip
        assert [float(cell) for cell in latency[2:]] == pytest.approx(measured, rel=6e-3)
    assert "onnx-fp32" not in card
    assert "No numbers." in card
    assert "cc0-1.0" in card
    for line in card.splitlines():
        assert not re.search(r"None|Undefined|\{\{|\{%", line), line


@pytest.mark.parametrize("missing", ["accuracy", "latency", "budget", "labels", "training"])
def test_the_card_has_no_figures_that_were_not_measured(released: Released, missing: str) -> None:
    recipe = load_recipe(released.recipe, [f"runs={released.runs}", SECTION])
    facts = card_facts(recipe)
    facts = replace(facts, report=replace(facts.report, **{missing: None}))
    card, metadata = card_body(facts, released.folder), card_metadata(facts).to_dict()
    assert not re.search(r"None|Undefined", card)
    assert card.count("Not measured.") == (missing in ("accuracy", "latency"))
    assert ("model-index" in metadata) == (missing != "accuracy")


def test_the_hub_indexes_the_results(released: Released) -> None:
    data = ModelCard.load(released.folder / "README.md").data
    report = json.loads((released.folder / "report.json").read_text())
    assert (data.license, data.language, data.pipeline_tag) == ("apache-2.0", ["en"], "automatic-speech-recognition")
    assert {"onnx", "transformers.js", "whisper"} <= set(data.tags)
    assert data.base_model is None, "a local teacher is not on the Hub"
    results = {(result.metric_type, result.metric_name.split(", ")[2].split(" (")[0]): result.metric_value
               for result in data.eval_results}  # fmt: skip
    assert results == {
        (metric, system["name"]): round(system["results"]["spoken"][metric]["value"], 2)
        for system in report["accuracy"]["systems"] if system["name"] in ("student-torch-fp32", "onnx-int8")
        for metric in ("wer", "cer")
    }  # fmt: skip


def test_the_example_in_the_card_works(
    released: Released, speech: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soundfile

    clip = sorted((speech / "test").glob("*.flac"))[0]
    samples: np.ndarray = read_audio(clip)
    monkeypatch.setattr(soundfile, "read", lambda _: (samples, 16_000))
    code = re.search(r"```python\n(.*?)```", (released.folder / "README.md").read_text(), re.S)
    assert code is not None
    names: dict[str, object] = {"MODEL": str(released.folder)}
    exec(code[1], names)
    transcribed = run(*sottovoce("transcribe", str(released.folder), str(clip), "--runtime", "torch"))
    assert names["text"] == transcribed.stdout.strip()


def test_verify_names_the_files_that_were_changed(released: Released, tmp_path: Path) -> None:
    copy = released.copy(tmp_path).folder
    run = released._run
    verified = run(*sottovoce("release", "--verify", str(copy)))
    assert verified.stdout == f"{copy}: all {len(EXPECTED) - 1} files are as released\n"
    changes: dict[str, Callable[[], object]] = {
        "config.json was changed": lambda: (copy / "config.json").write_text("{}"),
        "vocab.json is missing and 1 more": lambda: (copy / "vocab.json").unlink(),
        "notes.txt is not listed": lambda: (copy / "notes.txt").write_text("mine"),
    }
    for message, change in changes.items():
        change()
        failed = run(*sottovoce("release", "--verify", str(copy)))
        assert failed.returncode == 2
        if "listed" not in message:
            assert message in failed.stderr


def assert_refused(released: Released, message: str, *options: str, **environment: str) -> None:
    """Assert that a push fails with one line on stderr that contains `message`, and that the token is not shown."""
    done = released("--push", *(options or (SECTION, "--repository", "me/small")), HF_TOKEN=TOKEN, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert TOKEN not in done.stdout + done.stderr


def test_a_release_that_must_not_be_published_is_not_pushed(released: Released, tmp_path: Path) -> None:
    copy = released.copy(tmp_path).committed()
    copy.record("eval", commit="0123abc+")
    assert_refused(copy, f"push: eval of {copy.root} came from uncommitted changes")
    copy.committed()
    assert_refused(copy, "expected a repository, found none", SECTION)
    assert_refused(copy, "expected a release section", "--repository", "me/small")
    assert_refused(copy, "release is stale: release changed", SECTION, "release.tags=[new]", "--repository", "me/small")
    (copy.folder / "config.json").write_text((copy.folder / "config.json").read_text().replace("whisper", "Whisper"))
    assert_refused(copy, "config.json was changed")
    shutil.copy(released.folder / "config.json", copy.folder / "config.json")
    budget = json.loads((copy.root / "report" / "stage.json").read_text())["recipe"]["budget"] | {"required": True}
    copy.record("report", metrics={"budget_kept": False}, recipe={"budget": budget, "beside": []})
    assert_refused(
        copy, "missed its required budget device", SECTION, "budget.required=true", "--repository", "me/small"
    )


def test_without_a_token_the_files_to_upload_are_listed(released: Released, tmp_path: Path) -> None:
    copy = released.copy(tmp_path).committed()
    done = copy("--push", SECTION, "--repository", "me/small", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "expected an access token, found none" in done.stderr
    head, *lines = done.stdout.splitlines()
    assert "me/small (private), revision small-" in head
    listed = {line.split()[2]: float(line.split()[0]) for line in lines}
    assert listed.keys() == EXPECTED
    assert listed["model.safetensors"] == pytest.approx(
        (copy.folder / "model.safetensors").stat().st_size / 1e6, abs=1e-3
    )


def test_an_unreachable_hub_is_reported_in_one_line_and_nothing_is_lost(released: Released, tmp_path: Path) -> None:
    copy = released.copy(tmp_path).committed()
    before = {file: file.read_bytes() for file in copy.runs.rglob("*") if file.is_file()}
    assert_refused(
        copy, "the Hub cannot be reached", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path)
    )
    assert_refused(copy, "the Hub cannot be reached", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert {file: file.read_bytes() for file in copy.runs.rglob("*") if file.is_file()} == before
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


def test_an_interrupted_push_continues_and_is_one_revision(released: Released, tmp_path: Path) -> None:
    copy = released.copy(tmp_path).committed()
    options = [SECTION, "--repository", "me/small"]
    with running_hub() as hub:
        environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path),
                 "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
        hub.most_uploads = 2
        assert_refused(copy, "the Hub refused (HfHubHTTPError, HTTP 403)", *options, **environment)
        assert (hub.commits, hub.tags, hub.files) == ([], {}, {})
        first = list(hub.uploads)
        hub.most_uploads, hub.files = 1000, {"old.bin": "0", ".gitattributes": "0"}
        done = copy("--push", *options, HF_TOKEN=TOKEN, **environment)
        assert done.returncode == 0, done.stderr
        assert len(first) == 2
        assert len(set(hub.uploads)) == len(hub.uploads) == 4, "files that were uploaded before are not sent again"
        assert hub.private == {"me/small": True}
        digests = {name: hashlib.sha256((copy.folder / name).read_bytes()).hexdigest() for name in EXPECTED}
        assert hub.files == digests | {".gitattributes": "0"}
        (tag,) = hub.tags
        assert tag == f"small-{digests['SHA256SUMS'][:8]}"
        assert hub.tags[tag] == hub.commits[-1]
        again = copy("--push", *options, HF_TOKEN=TOKEN, **environment)
        assert again.stdout == f"me/small: already has {tag}\n"
        assert len(hub.commits) == 1
        assert hub.tokens == {f"Bearer {TOKEN}", ""}, "the storage gets no token"
        assert TOKEN not in done.stdout + done.stderr + again.stdout + again.stderr
        hub.private["me/small"] = False
        assert_refused(copy, "expected a private repository, found a public one", *options, **environment)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
