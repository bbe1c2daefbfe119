"""Encoders side by side: exported, then asked in turn, so that the machine's other work falls on all of them alike.

A system is a runtime in a precision. Float in OpenVINO is `fp32`, computed as such, and `fp16`, the file that is
shipped and that computes in bfloat16 where the CPU has it. Int8 of OpenVINO is calibrated on training audio with one
share of SmoothQuant and not the exporter's grid of five: all are equally fast, and the grid takes minutes.

B batch, F mel bins, T mel frames.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.models.cutting import cut_layers
from eval.runtimes.interface import Runtime
from eval.runtimes.registry import open_runtime
from recipes.schema.export_section import Precision
from tests.bench.turns import medians_ms

SYSTEMS: dict[str, tuple[Precision, ...]] = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "fp16", "int8")}
SMOOTH_QUANT = (0.5,)


def shallow(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """A copy with one decoder layer: it is exported along and never asked, and takes most of an export's time."""
    return cut_layers(model, list(range(model.config.encoder_layers)), [0])


def exported(
    models: Mapping[str, WhisperForConditionalGeneration], sources: Mapping[str, Path], audio: Sequence[Sequence[str]],
    place: str, threads: int, systems: Mapping[str, Sequence[Precision]] = SYSTEMS,
) -> dict[str, dict[str, Runtime]]:  # fmt: skip
    """Each model in each system, by names such as `onnx-int8`, in a folder of its own in this place.

    Processors are those of each model's folder in `sources`, audio is training audio for int8.
    """
    opened: dict[str, dict[str, Runtime]] = {}
    for name, model in tqdm(models.items(), "exports"):
        folder = Path(tempfile.mkdtemp(dir=place))
        write_layout(sources[name], folder)
        for runtime, precisions in systems.items():
            EXPORTERS[runtime](ExportSource(model, sources[name], audio, SMOOTH_QUANT), folder, precisions)
        opened[name] = {
            f"{runtime}-{precision}": open_runtime(runtime, folder, precision, threads)
            for runtime, precisions in systems.items()
            for precision in precisions
        }
    return opened


def encoder_times(
    encoders: Mapping[str, Mapping[str, Runtime]], mels: Mapping[str, Sequence[np.ndarray]], runs: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Medians of one window [1, F, T] by model, figure and system, all in turn; ratios are to the first model's.

    Each model hears windows of its own length. Beside the time that passed (`p50`) stands the processor time of all
    this process's threads (`cpu`), which other programs' turns are not in.
    """

    def encode(runtime: Runtime, windows: Sequence[np.ndarray]) -> Callable[[int], object]:
        return lambda run: runtime.encode(windows[run % len(windows)])

    calls = {
        (name, system): encode(runtime, mels[name]) for name, of in encoders.items() for system, runtime in of.items()
    }
    medians = medians_ms(calls, runs, "encoders")
    first, rows = next(iter(encoders)), dict[str, dict[str, dict[str, float]]]()
    for name, of in encoders.items():
        rows[name] = {}
        for clock, figure in enumerate(("p50", "cpu")):
            ms = {system: medians[name, system][clock] for system in of}
            over = {system: ms[system] / medians[first, system][clock] for system in of}
            rows[name][f"encoder_{figure}_ms"] = {system: round(value, 2) for system, value in ms.items()}
            rows[name][f"encoder_{figure}_ratio"] = {system: round(value, 3) for system, value in over.items()}
    return rows
