"""Compare encoders: export them, then time them in turn, so that other work on the machine slows all of them alike.

A system is a runtime in a precision, such as `onnx-int8`. For OpenVINO, `fp32` is computed in float32, and `fp16` is
the file that is released and computes in bfloat16 where the CPU has it. OpenVINO's int8 is calibrated on training audio
with a single SmoothQuant alpha instead of the exporter's grid of five: all are equally fast, and the grid takes
minutes.

B batch, F mel bins, T mel frames.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import WhisperForConditionalGeneration

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.models.cutting import cut_layers
from eval.runtimes.interface import Runtime
from eval.runtimes.registry import open_runtime
from recipes.core.progress import track
from recipes.schema.export_section import Precision
from tests.bench.interleaved_timing import median_times_ms

SYSTEMS: dict[str, tuple[Precision, ...]] = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "fp16", "int8")}
SMOOTH_QUANT_ALPHAS = (0.5,)


def with_one_decoder_layer(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Return a copy with one decoder layer: the decoder is exported but never run, and would dominate export time."""
    return cut_layers(model, list(range(model.config.encoder_layers)), [0])


def export_and_open(
    models: Mapping[str, WhisperForConditionalGeneration], sources: Mapping[str, Path], audio: Sequence[Sequence[str]],
    folder: Path, threads: int, systems: Mapping[str, Sequence[Precision]] = SYSTEMS,
) -> dict[str, dict[str, Runtime]]:  # fmt: skip
    """Export each model to each system, below `folder`, and return the opened runtimes by model and system.

    Args:
        models: Models by name.
        sources: For each model, the folder with its tokenizer and processor.
        audio: Training audio that int8 is calibrated on.
        folder: An existing folder; each model gets a folder of its own in it.
        threads: Threads of each runtime.
        systems: Precisions by runtime.
    """
    opened: dict[str, dict[str, Runtime]] = {}
    for name, model in track(models.items(), "exports", unit="model"):
        model_folder = Path(tempfile.mkdtemp(dir=folder))
        write_layout(sources[name], model_folder)
        for runtime, precisions in systems.items():
            source = ExportSource(model, sources[name], audio, SMOOTH_QUANT_ALPHAS)
            EXPORTERS[runtime](source, model_folder, precisions)
        opened[name] = {
            f"{runtime}-{precision}": open_runtime(runtime, model_folder, precision, threads)
            for runtime, precisions in systems.items()
            for precision in precisions
        }
    return opened


def time_encoders(
    encoders: Mapping[str, Mapping[str, Runtime]], mels: Mapping[str, Sequence[np.ndarray]], runs: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return median times for one window [1, F, T], all encoders in turn, by model, figure and system.

    Each model encodes the windows `mels[name]`, of its own length. The figures are elapsed time (`encoder_p50_ms`),
    processor time of all threads of this process (`encoder_cpu_ms`), which leaves out other programs, and the ratio of
    each to the first model's time in the same system (`encoder_p50_ratio`, `encoder_cpu_ratio`).
    """

    def encode(runtime: Runtime, windows: Sequence[np.ndarray]) -> Callable[[int], object]:
        return lambda run: runtime.encode(windows[run % len(windows)])

    calls = {
        (name, system): encode(runtime, mels[name])
        for name, runtimes in encoders.items()
        for system, runtime in runtimes.items()
    }
    medians = median_times_ms(calls, runs, "encoders")
    first, rows = next(iter(encoders)), dict[str, dict[str, dict[str, float]]]()
    for name, runtimes in encoders.items():
        rows[name] = {}
        for clock, figure in enumerate(("p50", "cpu")):
            ms = {system: medians[name, system][clock] for system in runtimes}
            ratio = {system: ms[system] / medians[first, system][clock] for system in runtimes}
            rows[name][f"encoder_{figure}_ms"] = {system: round(value, 2) for system, value in ms.items()}
            rows[name][f"encoder_{figure}_ratio"] = {system: round(value, 3) for system, value in ratio.items()}
    return rows
