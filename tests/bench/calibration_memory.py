"""Measure the memory that low-rank calibration takes above the loaded model, with little and with much audio.

    python -m tests.bench.calibration_memory SPEECH MODEL MINUTES        one JSON line, for this process

The audio is spread over the LibriSpeech utterances that fill the model's window, so that MINUTES of calibration contain
no padding.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import psutil

from distill.compression.context import CompressionContext
from distill.compression.low_rank import factor_encoder
from eval.audio.recordings import SAMPLE_RATE
from eval.runtimes.log_mel import HOP
from eval.runtimes.process_memory import peak_rss_mb
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.schema.compress_section import LowRankOptions


def measure_calibration_memory(speech: Path, model: Path, minutes: tuple[float, float]) -> dict[str, object]:
    """Measure two amounts of audio, each in a fresh process; return both rows and the ratio of the second's memory."""
    command = [sys.executable, "-m", "tests.bench.calibration_memory", str(speech), str(model)]
    runs = [
        subprocess.run([*command, str(length)], check=True, stdout=subprocess.PIPE, text=True) for length in minutes
    ]
    rows = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
    return {"rows": rows, "ratio": round(rows[1]["above_model_mb"] / rows[0]["above_model_mb"], 3)}


def main() -> None:
    """Load the model, reset the peak of memory, calibrate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("minutes", type=float)
    args = parser.parse_args()
    folder = args.speech / "librispeech-mini" / "train"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    model = load_model(args.model)
    window_s = 2 * model.config.max_source_positions * HOP / SAMPLE_RATE
    audio = [[str(folder / row["file_name"])] for row in rows if row["seconds"] >= window_s]
    clips = min(len(audio), math.ceil(60 * args.minutes / window_s))
    context = CompressionContext(audio, [None] * len(audio), clips, args.model)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident memory
    model_mb = psutil.Process().memory_info().rss / 1e6
    factor_encoder(model, LowRankOptions(), context)
    peak_mb = peak_rss_mb()
    print(json.dumps({
        "minutes": round(clips * window_s / 60, 2), "clips": clips,
        "above_model_mb": round(peak_mb - model_mb, 1), "peak_mb": round(peak_mb, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
