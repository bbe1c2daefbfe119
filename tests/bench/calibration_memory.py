"""Memory that calibrating low rank takes above the loaded model, on little and on much audio.

    python -m tests.bench.calibration_memory SPEECH MODEL MINUTES        one JSON line, of this process

Audio is spread over the utterances of librispeech-mini that fill the model's window, so that minutes are minutes heard.
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
from recipes.schema.compress_section import LowRankOptions


def memory_above(speech: Path, model: Path, minutes: tuple[float, float]) -> dict[str, object]:
    """Of both lengths, each in a fresh process, and the second over the first."""
    command = [sys.executable, "-m", "tests.bench.calibration_memory", str(speech), str(model)]
    runs = [subprocess.run([*command, str(each)], check=True, stdout=subprocess.PIPE, text=True) for each in minutes]
    rows = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
    return {"rows": rows, "ratio": round(rows[1]["above_model_mb"] / rows[0]["above_model_mb"], 3)}


def main() -> None:
    """Load, forget the peak so far, calibrate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("minutes", type=float)
    given = parser.parse_args()
    folder = given.speech / "librispeech-mini" / "train"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    model = load_model(given.model)
    window_s = 2 * model.config.max_source_positions * HOP / SAMPLE_RATE
    audio = [[str(folder / row["file_name"])] for row in rows if row["seconds"] >= window_s]
    clips = min(len(audio), math.ceil(60 * given.minutes / window_s))
    material = CompressionContext(audio, [None] * len(audio), clips, given.model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    stood = psutil.Process().memory_info().rss / 1e6
    factor_encoder(model, LowRankOptions(), material)
    peak = peak_rss_mb()
    print(json.dumps({
        "minutes": round(clips * window_s / 60, 2), "clips": clips,
        "above_model_mb": round(peak - stood, 1), "peak_mb": round(peak, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
