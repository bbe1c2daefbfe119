"""Measure a teacher with its weights in 8 and 4 bits by GPTQ: size, corpus WER against the original's, time on a CPU.

    python -m tests.bench.weights SPEECH [--model FOLDER] [--groups N ...]        one JSON line

Needs `pip install 'sottovoce[int4]'`. All models are calibrated on the same clips of AN4's training split and scored on
its test split; differences to the original are paired. PSNR, of encoder states and of logits along the original's
texts, is measured on other clips of the training split. `w4a16-N` has one scale for every N inputs; `group` is the N
that the export stage uses. For comparison, `published` holds Neural Magic's figures for W4A16 of whisper-large-v3:
12.66 -> 12.95 % WER on their own test sets.

Clips are timed in turn in PyTorch, which has no kernels for these formats: the time is what the file costs without
vLLM. Processor time is given, because other work on the machine would change elapsed time by more than the formats
differ.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.exporters.compressed_tensors_export import (
    CLIPS,
    SCHEMES,
    calibration_batches,
    group_size,
    w4a16,
    write_quantized,
)
from distill.exporters.export_source import ExportSource
from distill.exporters.folder_layout import write_layout
from distill.exporters.parity import TorchReference, compare_with_torch
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime, weight_files
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from eval.scoring.error_rates import count_errors, normalizer
from eval.scoring.resampling import permutation_test
from recipes.core.errors import run_main
from tests.bench.compress import Clips, read_clips, transcribe_clips, wer_interval
from tests.bench.interleaved_timing import median_times_ms

PUBLISHED_WER = {"whisper-large-v3 w4a16": [12.66, 12.95]}


def quantize_all(student: ExportSource, folder: Path, groups: Sequence[int]) -> dict[str, tuple[Path, str]]:
    """Write each quantised model to its own folder; return folder and precision by the name of the row."""
    batches = calibration_batches(student)
    schemes = {f"w4a16-{group}": ("w4a16", w4a16(student.model, group)) for group in groups}
    schemes["w8a8"] = ("w8a8", SCHEMES["w8a8"](student.model))
    for name, (precision, scheme) in schemes.items():
        write_layout(student.source, folder / name)
        write_quantized(student, folder / name, folder / name / f"compressed-{precision}", scheme, batches)
    return {name: (folder / name, precision) for name, (precision, _) in schemes.items()}


def measure_psnr_db(student: ExportSource, runtimes: Mapping[str, Any], count: int = 32) -> dict[str, list[float]]:
    """Return the PSNR of encoder states and logits against the original's, on clips that were not used to calibrate."""
    calibrated = student.calibration[:: max(1, len(student.calibration) // CLIPS)][:CLIPS]
    others = [audio for audio in student.calibration if audio not in calibrated]
    recordings = [(audio, None) for audio in others[:: max(1, len(others) // count)][:count]]
    transcriber = Transcriber(runtimes["original"], student.source, "en")
    reference = TorchReference.measure(transcriber, recordings, None, str.strip)
    rows = {
        name: compare_with_torch(reference, runtime, name) for name, runtime in runtimes.items() if name != "original"
    }
    return {
        name: [round(figures.encoder.psnr_db, 1), round(figures.logits.psnr_db, 1)] for name, figures in rows.items()
    }


def clip_cpu_ms(runtimes: Mapping[str, Any], folder: Path, clips: Clips, runs: int) -> dict[str, float]:
    """Return the median processor time of a clip for each runtime, timed in turn."""
    transcribers = {name: Transcriber(runtime, folder, "en") for name, runtime in runtimes.items()}
    samples = [read_audio(audio) for audio, _ in clips[:runs]]

    def transcribe(transcriber: Transcriber) -> Callable[[int], object]:
        return lambda run: transcriber.transcribe([samples[run % len(samples)]])

    calls = {name: transcribe(transcriber) for name, transcriber in transcribers.items()}
    medians = median_times_ms(calls, runs, "clips")
    return {name: round(cpu, 2) for name, (_, cpu) in medians.items()}


def main() -> None:
    """Quantise the teacher in every format, score and time the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", type=Path, default=Path("recipes/demo/teacher"))
    parser.add_argument(
        "--groups", type=int, nargs="*", default=[32, 64], help="numbers of inputs that share a scale, for w4a16"
    )
    parser.add_argument("--runs", type=int, default=50, help="timed clips per model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test", type=int, help="score only so many clips")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, train = load_model(args.model), read_clips(args.speech / "an4" / "train")
    test = read_clips(args.speech / "an4" / "test")[: args.test]
    with tempfile.TemporaryDirectory() as scratch:
        student = ExportSource(model, args.model, [[audio] for audio, _ in train])
        folders = quantize_all(student, Path(scratch), args.groups)
        runtimes: dict[str, Any] = {"original": TorchRuntime(model)}
        runtimes |= {
            name: open_runtime("compressed_tensors", *location, args.threads) for name, location in folders.items()
        }
        files = {"original": weight_files("torch", args.model, "fp32")}
        files |= {name: weight_files("compressed_tensors", *location) for name, location in folders.items()}
        size_mb = {name: sum(file.stat().st_size for file in paths) / 1e6 for name, paths in files.items()}
    texts = {name: transcribe_clips(runtime.model, args.model, test) for name, runtime in runtimes.items()}
    normalize = normalizer("basic", args.model)
    references = [normalize(text) for _, text in test]
    errors = {name: count_errors(references, transcripts) for name, transcripts in texts.items()}
    psnr_db = measure_psnr_db(student, runtimes)
    cpu_ms, original, rows = clip_cpu_ms(runtimes, args.model, test, args.runs), texts["original"], dict[str, Any]()
    for name, transcripts in texts.items():
        intervals = {"wer": wer_interval(errors[name])}
        if name != "original":
            intervals["to_original"] = wer_interval(errors[name], errors["original"])
        triples = zip(references, original, transcripts, strict=True)
        changed = [triple for triple in triples if triple[1] != triple[2]]
        rows[name] = {
            "size_mb": round(size_mb[name], 2),
            **intervals,
            "p": round(permutation_test([errors[name]], [errors["original"]], seed=0), 3),
            "psnr_db": psnr_db.get(name), "texts_changed": len(changed), "changed": changed[:5],
            "clip_cpu_ms": cpu_ms[name], "clip_cpu_ratio": round(cpu_ms[name] / cpu_ms["original"], 2),
        }  # fmt: skip
    print(json.dumps({
        "bench": "w4a16", "model": str(args.model), "group": group_size(model), "rows": rows, "test_clips": len(test),
        "words": int(errors["original"].units.sum()), "calibration_clips": min(CLIPS, len(train)),
        "threads": args.threads, "wer_is": "value, low and high of the 95 % interval", "published": PUBLISHED_WER,
        "changed_is": "reference, original, this one",
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
