"""Encoders side by side: exported, then asked in turn, so that the machine's other work falls on all of them alike.

A system is a runtime in a precision. Float in OpenVINO is `fp32`, computed as such, and `fp16`, the file that is
shipped and that computes in bfloat16 where the CPU has it. Int8 of OpenVINO is calibrated on training audio with one
share of SmoothQuant and not the exporter's grid of five: all are equally fast, and the grid takes minutes.

B batch, F mel bins, T mel frames.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from distill.export import EXPORTERS, Student
from distill.export.layout import write_layout
from eval.runtimes import open_runtime
from eval.runtimes.transcriber import Runtime
from recipes.sections import Precision

SYSTEMS: dict[str, tuple[Precision, ...]] = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "fp16", "int8")}
SMOOTH_QUANT = (0.5,)
WARM_UP = 3


def exported(
    model: WhisperForConditionalGeneration, source: Path, audio: Sequence[Sequence[str]], place: str, threads: int,
    systems: Mapping[str, Sequence[Precision]] = SYSTEMS,
) -> dict[str, Runtime]:  # fmt: skip
    """The model in each system, by names such as `onnx-int8`, in a folder of its own in this place.

    Processors are those of the folder `source`, audio is training audio for int8.
    """
    folder = Path(tempfile.mkdtemp(dir=place))
    write_layout(source, folder)
    for runtime, precisions in systems.items():
        EXPORTERS[runtime](Student(model, source, audio, SMOOTH_QUANT), folder, precisions)
    return {
        f"{runtime}-{precision}": open_runtime(runtime, folder, precision, threads)
        for runtime, precisions in systems.items()
        for precision in precisions
    }


def encoder_ms(
    encoders: Mapping[str, Mapping[str, Runtime]], mels: Sequence[np.ndarray], runs: int
) -> dict[str, dict[str, float]]:
    """Median time of one window [1, F, T] by model and system, all in turn."""
    spent: dict[str, dict[str, list[float]]] = {name: {system: [] for system in of} for name, of in encoders.items()}
    for run in tqdm(range(-WARM_UP, runs), "encoders"):
        for name, of in encoders.items():
            for system, runtime in of.items():
                started = time.perf_counter()
                runtime.encode(mels[run % len(mels)])
                if run >= 0:
                    spent[name][system].append(1e3 * (time.perf_counter() - started))
    return {
        name: {system: round(float(np.median(times)), 2) for system, times in of.items()} for name, of in spent.items()
    }


def ratios(times: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    """Times over those of another model, by system."""
    return {system: round(time / first[system], 3) for system, time in times.items()}
