"""The files of a release, its checksums, the numbers in its card, and the errors of the Hub."""

import json
import re
import stat
import subprocess
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperConfig

from distill.exporters.folder_layout import complete_onnx, write_layout
from distill.exporters.head_selection import HeadChoice, write_heads
from distill.models.saving import save_model
from distill.publishing.model_card import format_interval, format_signed
from distill.publishing.release_folder import (
    SUMS,
    ReleaseSources,
    build_release_folder,
    exported_files,
    link_or_copy,
    make_paths_relative,
    release_tag,
    released_files,
    verify_checksums,
    write_checksums,
)
from eval.runtimes.modeling_sottovoce import SottovoceForConditionalGeneration
from eval.runtimes.torch_runtime import load_model
from eval.scoring.accuracy_rows import Interval, OptionalInterval
from recipes.core.errors import UserError
from recipes.core.hub import hub_errors_as_user_errors
from recipes.schema.export_section import ExportSection
from recipes.schema.recipe import load_recipe, validate_recipe
from tests.conftest import ROOT, TEACHER

EXPORTED = ExportSection(onnx=["fp32", "int8"], openvino=["fp16", "int8"], ctranslate2=["int8"])
FILES = {
    "onnx-fp32": ("onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx", "onnx/decoder_model_merged.onnx_data"),
    "onnx-int8": ("onnx/encoder_model_quantized.onnx", "onnx/decoder_model_merged_quantized.onnx"),
    "openvino-fp16": ("openvino-fp16/openvino_encoder_model.xml", "openvino-fp16/openvino_encoder_model.bin",
                      "openvino-fp16/openvino_tokenizer.xml", "openvino-fp16/config.json"),
    "openvino-int8": ("openvino-int8/openvino_encoder_model.xml", "openvino-int8/openvino_encoder_model.bin"),
    "ctranslate2-int8": ("ctranslate2-int8/model.bin", "ctranslate2-int8/vocabulary.json"),
}  # fmt: skip
SHARED = {"config.json", "tokenizer.json", "vocab.json"}


@given(names=st.sets(st.sampled_from(sorted(FILES))))
def test_an_artefact_comes_with_all_its_files_and_none_of_the_others(
    names: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("export")
    for name in [*SHARED, "onnx/generation_config.json", *(file for files in FILES.values() for file in files)]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    chosen = [artefact for artefact in EXPORTED.artefacts if artefact[0] in names]
    files = {file.relative_to(folder).as_posix() for file in exported_files(folder, EXPORTED.artefacts, chosen)}
    next_to_onnx = {"onnx/generation_config.json"} if any(name.startswith("onnx") for name in names) else set()
    assert files == SHARED | next_to_onnx | {file for name in names for file in FILES[name]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    release = tmp_path / "release"
    for name in ("b.json", "onnx/a file.onnx", ".cache/hidden", "stage.json"):
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_text(name)
    write_checksums(release)
    return release


def test_checksums_are_those_of_coreutils(folder: Path) -> None:
    listed = subprocess.run(
        ["sha256sum", "b.json", "onnx/a file.onnx"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert (folder / SUMS).read_text() == listed.stdout
    assert verify_checksums(folder) == 2
    assert [file.name for file in released_files(folder)] == [SUMS, "b.json", "a file.onnx"]
    before = release_tag("small", folder)
    assert re.fullmatch(r"small-[0-9a-f]{8}", before)
    (folder / "b.json").write_text("c")
    with pytest.raises(UserError, match=r"b\.json was changed"):
        verify_checksums(folder)
    (folder / "onnx" / "a file.onnx").unlink()
    with pytest.raises(UserError, match=r"a file\.onnx is missing and 1 more"):
        verify_checksums(folder)
    write_checksums(folder)
    assert release_tag("small", folder) != before
    (folder / "new.txt").write_text("")
    with pytest.raises(UserError, match=r"new\.txt is not listed; make"):
        verify_checksums(folder)
    with pytest.raises(UserError, match="expected a release with SHA256SUMS"):
        verify_checksums(folder / "onnx")


def test_linking_twice_does_not_change_the_source(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "a").chmod(0o600)  # as safetensors writes it
    for _ in range(2):
        link_or_copy(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").read_text() == (tmp_path / "a").read_text() == "1"
    assert stat.S_IMODE((tmp_path / "deep" / "b").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("text", "relative"),
    [
        ("runs=/srv/mine/runs", "runs=runs"),
        ('{"path": "/srv/mine"}', '{"path": "."}'),
        ("sources: [/srv/speech/an4/a b.wav, '/srv/mine/a+b/']", "sources: [../speech/an4/a b.wav, 'a+b']"),
        ("elsewhere /data/srv/mine and /srvshop", "elsewhere /data/srv/mine and /srvshop"),
        ("already a/srv/mine ../speech <b>1/2</b>", "already a/srv/mine ../speech <b>1/2</b>"),
        ("https://srv/mine base64,Ab+/srv/mine", "https://srv/mine base64,Ab+/srv/mine"),
    ],
)  # fmt: skip
def test_paths_are_relative_to_the_working_folder(text: str, relative: str) -> None:
    assert make_paths_relative(text, Path("/srv/mine")) == relative


def test_paths_stay_absolute_if_only_the_root_folder_contains_both() -> None:
    assert make_paths_relative("/mine/runs /etc/passwd", Path("/mine")) == "runs /etc/passwd"


def test_a_student_with_low_rank_layers_keeps_its_config_next_to_exported_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WhisperConfig.from_pretrained(TEACHER)
    config.low_rank = {"model.encoder.layers.0.fc1": 16}
    student = SottovoceForConditionalGeneration(config).eval()
    root, folder = tmp_path / "runs" / "small", tmp_path / "release"
    save_model(student, root / "compress" / "model", processors=TEACHER, drop_alignment_heads=True)
    write_layout(root / "compress" / "model", root / "export" / "model")
    (root / "export" / "model" / "onnx").mkdir()
    (root / "export" / "model" / "onnx" / "encoder_model.onnx_data").write_text("large")
    write_heads(root / "export" / "model", HeadChoice([(3, 1), (2, 0)], 3, 20.0, {}, 1, 2))
    complete_onnx(root / "export" / "model")
    (root / "report").mkdir()
    for name in ("report.html", "report.json"):
        (root / "report" / name).write_text(f"corpus.sources=[{ROOT.parent}/speech]")
    values = {"name": "small", "runs": tmp_path / "runs", "teacher": {"model": str(TEACHER)},
              "student": {"decoder_layers": 4}, "corpus": {"sources": [{"audio": "a"}]}, "labels": {},
              "compress": {"low_rank": {}}, "release": {"licence": "mit", "artefacts": {"onnx": ["fp32"]}}}  # fmt: skip
    monkeypatch.chdir(ROOT)
    recipe = validate_recipe(values, "small")
    chosen = [("onnx-fp32", "onnx", "fp32")]
    sources = ReleaseSources(
        student=root / "compress" / "model", export=root / "export" / "model", report=root / "report",
        exported=recipe.export.artefacts, chosen=chosen, recipe=recipe.model_dump(mode="json"),
    )  # fmt: skip
    build_release_folder(sources, folder)
    assert "model: recipes/demo/teacher\n" in (folder / "recipe.yaml").read_text()
    assert (folder / "report.json").read_text() == "corpus.sources=[../speech]"
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*") if file.is_file()} == {0o644}
    loaded = load_model(folder)
    assert isinstance(loaded, SottovoceForConditionalGeneration)
    assert all(loaded.state_dict()[name].equal(value) for name, value in student.state_dict().items())
    written = json.loads((folder / "config.json").read_text())
    assert written["low_rank"] == config.low_rank
    assert written["transformers.js_config"] == {"use_external_data_format": {"encoder_model.onnx": 1}}
    assert (folder / "modeling_sottovoce.py").is_file()
    assert written["median_filter_width"] == 3
    assert json.loads((folder / "generation_config.json").read_text())["alignment_heads"] == [[3, 1], [2, 0]]


@given(value=st.floats(-99, 99), below=st.floats(0, 50), above=st.floats(0, 50))
def test_a_cell_shows_rate_and_interval_to_one_decimal(value: float, below: float, above: float) -> None:
    rate = Interval(value, value - below, value + above)
    for text in (format_interval(rate), format_signed(rate)):
        numbers = [float(number) for number in re.findall(r"[-+]?\d+\.\d", text)]
        assert numbers == pytest.approx([value, value - below, value + above], abs=0.0501)
    assert format_interval(OptionalInterval(value)) == f"{value:.1f}"
    assert format_signed(None) == format_interval(None) == ""


SECRET = "hf_neverShown"
REQUEST = httpx.Request("POST", f"https://hub/{SECRET}", headers={"authorization": f"Bearer {SECRET}"})
REFUSALS = {
    "the Hub cannot be reached (ConnectError)": httpx.ConnectError(SECRET, request=REQUEST),
    "the Hub cannot be reached (ReadTimeout)": httpx.ReadTimeout(SECRET, request=REQUEST),
    "the Hub cannot be reached (OfflineModeIsEnabled)": OfflineModeIsEnabled(SECRET),
    "HTTP 403": HfHubHTTPError(SECRET, response=httpx.Response(403, request=REQUEST)),
    "expected an access token": LocalTokenNotFoundError(SECRET),
    "the Hub refused (ValueError)": ValueError(SECRET),
}


@pytest.mark.parametrize("reason", REFUSALS)
@pytest.mark.parametrize("inside", [False, True])
def test_an_error_of_the_hub_is_one_line_without_what_was_sent(reason: str, inside: bool) -> None:
    with pytest.raises(UserError) as caught, hub_errors_as_user_errors("push to a/b"):
        if inside:  # as the upload threads of huggingface_hub do
            raise RuntimeError(f"Error while uploading {SECRET}") from REFUSALS[reason]
        raise REFUSALS[reason]
    message = str(caught.value)
    assert message.startswith("push to a/b: ")
    assert reason in message or (inside and "RuntimeError" in message)
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("release={}", "release.licence: expected a value, found none"),
        ("release={licence: Apache 2}", "release.licence: String should match"),
        ("release={licence: mit, artefacts: {onnx: [fp16]}}", "expected some of onnx-int8, found onnx-fp16"),
        ("release={licence: mit, artefacts: {coreml: [fp16]}}", "release.artefacts.coreml"),
        ("release={licence: mit, data_licences: {voxpopuli: cc0}}", "expected some of somewhere, found voxpopuli"),
        ("release={licence: mit, repository: alone}", "release.repository: String should match"),
    ],
)  # fmt: skip
def test_an_invalid_section_is_reported_in_one_line(tmp_path: Path, override: str, error: str) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "{name: small, teacher: {model: t}, corpus: {sources: [{audio: somewhere}]}, student: {decoder_layers: 2}, "
        "export: {onnx: [int8]}}"
    )
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "recipe.yaml", [override])
    assert error in str(caught.value)
