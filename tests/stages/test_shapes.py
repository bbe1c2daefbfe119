"""True vocabularies and windows through the export stage: every artefact within its tolerance of torch."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from distill.models.random_weights import random_model
from recipes.core.whisper_shape import WhisperShape
from tests.conftest import VOCABULARIES
from tests.stages.conftest import Run, sottovoce

CASES = {  # vocabulary, window in s, encoder and decoder layers, language
    "128 mel bins, large-v3, 30 s": ("large-v3", 30, 3, 1, "en"),
    "English only, 6 s": ("english", 6, 1, 2, None),
    "multilingual, 30 s": ("multilingual", 30, 1, 3, "nl"),
}


@pytest.mark.parametrize("case", CASES)
def test_export_and_parity(tmp_path: Path, run: Run, speech: Path, case: str) -> None:
    name, window_s, encoder_layers, decoder_layers, language = CASES[case]
    if not (VOCABULARIES / name).is_dir():
        pytest.skip(f"{VOCABULARIES / name}: no vocabulary; set VOCABULARIES")
    vocabulary, teacher = tmp_path / "vocabulary", tmp_path / "teacher"
    shutil.copytree(VOCABULARIES / name, vocabulary)
    window = {"chunk_length": window_s, "n_samples": 16_000 * window_s, "nb_max_frames": 100 * window_s}
    features = json.loads((vocabulary / "preprocessor_config.json").read_text()) | window
    (vocabulary / "preprocessor_config.json").write_text(json.dumps(features))
    processor = json.loads((vocabulary / "processor_config.json").read_text())
    processor["feature_extractor"] |= window
    (vocabulary / "processor_config.json").write_text(json.dumps(processor))
    random_model(WhisperShape(64, encoder_layers, decoder_layers, 2, 0), vocabulary, teacher)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({
        "name": "shape", "runs": str(tmp_path / "runs"), "eval": None, "benchmark": None,
        "teacher": {"model": str(teacher), "language": language},
        "corpus": {"sources": [{"audiofolder": str(speech), "name": "spoken"}], "max_seconds": window_s},
        "student": {"decoder_layers": decoder_layers},
        "export": {"onnx": ["fp32"], "openvino": ["fp32"], "ctranslate2": ["fp32"],
                   "parity": {"clips": 2, "max_tokens": 12}},
    }))  # fmt: skip
    done = run(*sottovoce("run", str(recipe), "--until", "export"))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "shape" / "export"
    parity = json.loads((folder / "parity.json").read_text())
    assert [row["kept"] for row in parity["artefacts"]] == [True] * 3
    config = json.loads((folder / "model" / "config.json").read_text())
    assert (config["num_mel_bins"], config["max_source_positions"]) == (features["feature_size"], 50 * window_s)
    assert (config["encoder_layers"], config["decoder_layers"]) == (encoder_layers, decoder_layers)
