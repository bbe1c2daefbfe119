"""Every runtime and precision of a student of true size beside its teacher in PyTorch fp32.

    python -m tests.bench.export SPEECH VOCABULARY [--shape small] [--tokens 50] [--runs 20]        one JSON line

Random weights, a 30 s window, a fixed number of tokens, a two-layer decoder, two threads, real audio.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from distill.export import EXPORTERS, Student, openvino_quantize
from distill.export.layout import write_layout
from distill.shapes import random_model
from distill.student import cut, save_model, spaced_layers
from eval.benchmark import Bench
from eval.runtimes import available
from eval.runtimes.torch import load_model
from eval.systems import System
from recipes.devices import setting
from recipes.schema import validate
from recipes.shapes import SHAPES

PRECISIONS = {"onnx": ["fp32", "int8"], "openvino": ["fp32", "fp16", "int8"], "ctranslate2": ["fp32", "int8"]}
CLIPS = 10
CALIBRATION_CLIPS = 6
"""Of random weights there is no best share of SmoothQuant to find; at small's shape the grid takes ten minutes."""


def main() -> None:
    """Make teacher and student, export, measure each in a process of its own, the teacher first and last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    clips = [[str(file)] for file in sorted((given.speech / "an4" / "test").glob("*.flac"))[:CLIPS]]
    calibration = [[str(file)] for file in sorted((given.speech / "an4" / "train").glob("*.flac"))[:CALIBRATION_CLIPS]]
    with tempfile.TemporaryDirectory() as place:
        teacher, student = Path(place) / "teacher", Path(place) / "student"
        export(given.shape, given.vocabulary, teacher, student, calibration)
        recipe = validate(
            {
                "name": "bench", "teacher": {"model": str(teacher)}, "corpus": {"sources": [{"audio": str(place)}]},
                "student": {"decoder_layers": 2},
                "benchmark": {"runs": given.runs, "warmup": 3, "tokens": given.tokens, "threads": 2},
            },
            "the benchmark's own",
        )  # fmt: skip
        assert recipe.benchmark is not None
        baseline = System("teacher-torch-fp32", "teacher", "torch", "fp32", teacher)
        systems = [baseline] + [
            System(f"{runtime}-{precision}", "export", runtime, precision, student)
            for runtime, precision in available(student)
        ]
        bench = Bench(recipe, clips)
        plain = {"details": False}  # a token with 200 before it takes small's teacher minutes
        measured = [bench.start("eval.latency", each, setting(recipe), plain) for each in [*systems, baseline]]
        print(json.dumps(line(given.shape, systems, measured)))


def export(shape: str, vocabulary: Path, teacher: Path, student: Path, calibration: list[list[str]]) -> None:
    """The teacher's folder, and the student's with the files of every runtime."""
    random_model(SHAPES[shape], vocabulary, teacher)
    whole = load_model(teacher)
    layers = spaced_layers(whole.config.decoder_layers, 2, "decoder")
    model = cut(whole, list(range(whole.config.encoder_layers)), layers)
    checkpoint = student.with_name("checkpoint")
    save_model(model, checkpoint, processors=teacher, decoder_layers=layers)
    write_layout(checkpoint, student)
    openvino_quantize.ALPHAS = (None,)
    for runtime, precisions in PRECISIONS.items():
        EXPORTERS[runtime](Student(model, checkpoint, calibration), student, precisions)  # type: ignore[arg-type]


def line(shape: str, systems: list[System], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios to the teacher of the same run."""
    *rows, again = measured
    base = rows[0]["clip_ms"]["p50"]
    found = {
        system.name: {
            "speedup": round(base / row["clip_ms"]["p50"], 2), "clip_p50_ms": round(row["clip_ms"]["p50"], 1),
            "encoder_p50_ms": round(row["encoder_ms"]["p50"], 1), "token_p50_ms": round(row["token_ms"]["p50"], 2),
            "peak_rss_mb": round(row["peak_rss_mb"]), "size_mb": round(system.size_mb, 1),
        }
        for system, row in zip(systems, rows, strict=True)
    }  # fmt: skip
    int8 = {name: row for name, row in found.items() if name.endswith("int8")}
    return {
        "bench": "export", "shape": shape, "best_int8_ratio": max(row["speedup"] for row in int8.values()),
        "int8_step_ratio": round(found["onnx-int8"]["token_p50_ms"] / found["onnx-fp32"]["token_p50_ms"], 3),
        "least_int8_rss_mb": min(row["peak_rss_mb"] for row in int8.values()),
        "drift": round(again["clip_ms"]["p50"] / base, 3), "systems": found,
    }  # fmt: skip


if __name__ == "__main__":
    main()
