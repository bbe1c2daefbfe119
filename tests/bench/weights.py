"""A teacher's weights in 8 and 4 bits by GPTQ: size, corpus WER beside the original's, and what a CPU makes of it.

    python -m tests.bench.weights SPEECH [--model FOLDER] [--groups N ...]        one JSON line

Needs `pip install 'sottovoce[int4]'`. All are calibrated on the same clips of AN4's training split and scored on its
test split; differences to the original are paired. PSNR, of encoder states and of logits along the original's texts, is
on other clips of the training split. `w4a16-N` has a scale for every N inputs, `group` says which N an export takes.
Published beside: Neural Magic's W4A16 of whisper-large-v3, 12.66 -> 12.95 % on its own test sets. Clips take turns in
PyTorch, which has no kernels for these: their time says what the same file costs without vLLM. It is the processor's
own, since other work on the machine would be larger than the differences.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from distill.exporters.compressed_tensors_export import CLIPS, SCHEMES, calibration_batches, group_size, w4a16
from distill.exporters.compressed_tensors_export import write_quantized as write
from distill.exporters.export_source import ExportSource
from distill.exporters.folder_layout import write_layout
from distill.exporters.parity import TorchReference, compare_with_torch
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime, weight_files
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from eval.scoring.error_rates import bootstrap, count_errors, normalizer, permutation_test
from tests.bench.compress import Rows, clips, said
from tests.bench.turns import medians_ms

PUBLISHED = {"whisper-large-v3 w4a16": [12.66, 12.95]}


def quantized(student: ExportSource, place: Path, groups: Sequence[int]) -> dict[str, tuple[Path, str]]:
    """Folder and precision by the name of the row."""
    batches = calibration_batches(student)
    schemes = {f"w4a16-{group}": ("w4a16", w4a16(student.model, group)) for group in groups}
    schemes["w8a8"] = ("w8a8", SCHEMES["w8a8"](student.model))
    for name, (precision, scheme) in schemes.items():
        write_layout(student.source, place / name)
        write(student, place / name, place / name / f"compressed-{precision}", scheme, batches)
    return {name: (place / name, precision) for name, (precision, _) in schemes.items()}


def psnr_db(student: ExportSource, runtimes: Mapping[str, Any], count: int = 32) -> dict[str, list[float]]:
    """Of encoder states and logits beside the original's by runtime, on training clips not calibrated with."""
    calibrated = student.calibration[:: max(1, len(student.calibration) // CLIPS)][:CLIPS]
    others = [audio for audio in student.calibration if audio not in calibrated]
    recordings = [(audio, None) for audio in others[:: max(1, len(others) // count)][:count]]
    torch_side = Transcriber(runtimes["original"], student.source, "en")
    reference = TorchReference.take(torch_side, recordings, None, str.strip)
    rows = {
        name: compare_with_torch(reference, runtime, name) for name, runtime in runtimes.items() if name != "original"
    }
    return {name: [round(row[part]["psnr_db"], 1) for part in ("encoder", "logits")] for name, row in rows.items()}


def clip_cpu_ms(runtimes: Mapping[str, Any], folder: Path, test: Rows, runs: int) -> dict[str, float]:
    """Median processor time of a clip by runtime, all in turn."""
    sides = {name: Transcriber(runtime, folder, "en") for name, runtime in runtimes.items()}
    clips = [read_audio(audio) for audio, _ in test[:runs]]

    def transcribe(side: Transcriber) -> Callable[[int], object]:
        return lambda run: side.transcribe([clips[run % len(clips)]])

    medians = medians_ms({name: transcribe(side) for name, side in sides.items()}, runs, "clips")
    return {name: round(cpu, 2) for name, (_, cpu) in medians.items()}


def main() -> None:
    """Quantise, score, time; one row a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", type=Path, default=Path("recipes/demo/teacher"))
    parser.add_argument("--groups", type=int, nargs="*", default=[32, 64], help="inputs that share a scale, for w4a16")
    parser.add_argument("--runs", type=int, default=50, help="timed clips of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test", type=int, help="score only so many clips")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, train = load_model(given.model), clips(given.speech / "an4" / "train")
    test = clips(given.speech / "an4" / "test")[: given.test]
    with tempfile.TemporaryDirectory() as place:
        student = ExportSource(model, given.model, [[audio] for audio, _ in train])
        made = quantized(student, Path(place), given.groups)
        runtimes: dict[str, Any] = {"original": TorchRuntime(model)}
        runtimes |= {name: open_runtime("compressed_tensors", *which, given.threads) for name, which in made.items()}
        files = {"original": weight_files("torch", given.model, "fp32")}
        files |= {name: weight_files("compressed_tensors", *which) for name, which in made.items()}
        size_mb = {name: sum(file.stat().st_size for file in paths) / 1e6 for name, paths in files.items()}
    texts = {name: said(runtime.model, given.model, test) for name, runtime in runtimes.items()}
    normalize = normalizer("basic", given.model)
    truth = [normalize(text) for _, text in test]
    errors = {name: count_errors(truth, found) for name, found in texts.items()}
    departed = psnr_db(student, runtimes)
    spent, original, rows = clip_cpu_ms(runtimes, given.model, test, given.runs), texts["original"], dict[str, Any]()
    for name, found in texts.items():
        intervals = {"wer": bootstrap(errors[name], resamples=1000, seed=0)}
        if name != "original":
            intervals["to_original"] = bootstrap(errors[name], errors["original"], resamples=1000, seed=0)
        changed = [each for each in zip(truth, original, found, strict=True) if each[1] != each[2]]
        rows[name] = {
            "size_mb": round(size_mb[name], 2),
            **{key: [round(value, 2) for value in asdict(each).values()] for key, each in intervals.items()},
            "p": round(permutation_test([errors[name]], [errors["original"]], seed=0), 3),
            "psnr_db": departed.get(name), "texts_changed": len(changed), "changed": changed[:5],
            "clip_cpu_ms": spent[name], "clip_cpu_ratio": round(spent[name] / spent["original"], 2),
        }  # fmt: skip
    print(json.dumps({
        "bench": "w4a16", "model": str(given.model), "group": group_size(model), "rows": rows, "test_clips": len(test),
        "words": int(errors["original"].units.sum()), "calibration_clips": min(CLIPS, len(train)),
        "threads": given.threads, "wer_is": "value, low and high of the 95 % interval", "published": PUBLISHED,
        "changed_is": "reference, original, this one",
    }))  # fmt: skip


if __name__ == "__main__":
    main()
