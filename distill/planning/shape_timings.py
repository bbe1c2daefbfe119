"""Measure shapes: build them with random weights, export them, time them on this machine, and cache the results.

A machine that is shared with others changes its speed: the same file took 15.6 ms and 23.2 ms per clip within ten
minutes. Each shape therefore takes turns with a reference, a small model in PyTorch that is the same for all shapes.
The figure that counts is the ratio of the two times, multiplied by the median time of the reference over all cached
measurements.

    CACHE/DIGEST/setting.json                  what the figures depend on: machine, versions, teacher, threads, clip
    CACHE/DIGEST/4-4-30-all-onnx-int8.json     one measurement: encoder layers, decoder layers, window, tokens, artefact

A plan that was interrupted continues after its last measurement.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import soundfile

from distill.planning.cost_model import TIMES, CostFigures, MeasuredShape
from distill.planning.random_students import Artefact, build_artefacts, build_checkpoint
from distill.planning.search_space import Candidate, PlannedTeacher
from eval.audio.recordings import SAMPLE_RATE
from eval.latency.latency_rows import MeasuringTask, SystemTiming
from eval.latency.measuring import time_system
from eval.latency.paired_timing import WAKE_S, ClipPlayer, open_player, time_in_turn
from eval.runtimes.registry import weight_files
from recipes.core.atomic_files import write_json
from recipes.core.machine import describe_machine
from recipes.core.progress import track
from recipes.engine.freshness import sha256_of_text


@dataclass(frozen=True)
class ShapeMeasurement:
    """One file of the cache."""

    vocabulary: int
    """Vocabulary size of the student that was built."""
    quotient: float
    """Median over the runs of the shape's time of a clip divided by the reference's."""
    yardstick_ms: float
    """Median time of a clip of the reference, which took turns with the shape."""
    figures: CostFigures
    """The shape's figures, measured on its own and not yet adjusted for the machine's changing speed."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file that `json.dumps(asdict(...))` wrote."""
        values = json.loads(file.read_text())
        return cls(**(values | {"figures": CostFigures(**values["figures"])}))


@dataclass(frozen=True)
class ShapeTimings:
    """Measures the latency, memory and size of shapes under one setting, and caches what it has measured."""

    teacher: PlannedTeacher
    cache: Path
    """Folder of the measurements; each setting has a subfolder of its own."""
    threads: int
    """Threads of the runtime."""
    seconds: float
    """Length of the clip."""
    tokens: int
    """Number of tokens to decode for the clip; random weights would not stop by themselves."""
    runs: int
    """Timed runs of each shape."""
    language: str | None

    def measure(
        self, candidates: Sequence[Candidate], artefacts: Sequence[Artefact]
    ) -> dict[Artefact, list[MeasuredShape]]:
        """Return the measured candidates for each artefact, in order; only what is not cached yet is measured."""
        missing = {
            candidate: uncached
            for candidate in candidates
            if (uncached := [artefact for artefact in artefacts if not self._file(candidate, artefact).is_file()])
        }
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "setting.json", self._setting)
            with tempfile.TemporaryDirectory() as scratch, self._open_reference(Path(scratch)) as reference:
                for candidate, uncached in track(missing.items(), "measuring", unit="shape"):
                    self._measure_candidate(candidate, uncached, reference)
        usual_ms = float(np.median([ShapeMeasurement.read(file).yardstick_ms for file in self.folder.glob("*-*.json")]))
        return {
            artefact: [self._at_usual_speed(candidate, artefact, usual_ms) for candidate in candidates]
            for artefact in artefacts
        }  # fmt: skip

    @property
    def folder(self) -> Path:
        """Folder of all measurements with this setting."""
        return self.cache / sha256_of_text(json.dumps(self._setting, sort_keys=True))[:16]

    @property
    def _reference(self) -> Candidate:
        """The reference model: one encoder and one decoder layer, and a window just long enough for the clip."""
        return Candidate(1, 1, math.ceil(self.seconds), None)

    @property
    def _setting(self) -> dict[str, Any]:
        return {
            "machine": describe_machine(), "teacher": asdict(self.teacher.shape), "threads": self.threads,
            "clip_seconds": self.seconds, "tokens": self.tokens, "runs": self.runs,
            "yardstick": asdict(self._reference), "awake_s": WAKE_S,
        }  # fmt: skip

    def _file(self, candidate: Candidate, artefact: Artefact) -> Path:
        parts = [str(value) for value in asdict(candidate).values()]
        return self.folder / f"{'-'.join([*parts, *artefact]).replace('None', 'all')}.json"

    def _at_usual_speed(self, candidate: Candidate, artefact: Artefact, usual_ms: float) -> MeasuredShape:
        """Read a measurement, with its times as if the reference had taken `usual_ms`."""
        measurement = ShapeMeasurement.read(self._file(candidate, artefact))
        figures = measurement.figures
        factor = measurement.quotient * usual_ms / figures.clip_p50_ms
        return MeasuredShape(
            replace(self.teacher.cut(candidate), vocabulary=measurement.vocabulary),
            replace(figures, **{key: getattr(figures, key) * factor for key in TIMES}),
        )

    def _measure_candidate(self, candidate: Candidate, artefacts: Sequence[Artefact], reference: ClipPlayer) -> None:
        """Build, export and measure a candidate, and write one file to the cache for each artefact."""
        with tempfile.TemporaryDirectory() as scratch:
            folder, vocabulary = build_artefacts(
                self.teacher, candidate, artefacts, self._write_clip(Path(scratch)), Path(scratch), self.language
            )
            for runtime, precision in artefacts:
                task, name = self._task(folder, runtime, precision), f"{runtime}-{precision}"
                timing = time_system(task, name)
                with open_player(task, name) as player:
                    shape_N, reference_N = time_in_turn(player, reference, 1, self.runs)
                size_mb = sum(file.stat().st_size for file in weight_files(runtime, folder, precision)) / 1e6
                measurement = ShapeMeasurement(
                    vocabulary, float(np.median(shape_N / reference_N)), 1e3 * float(np.median(reference_N)),
                    _figures(timing, self.tokens, size_mb),
                )  # fmt: skip
                write_json(self._file(candidate, (runtime, precision)), asdict(measurement))

    @contextmanager
    def _open_reference(self, scratch: Path) -> Iterator[ClipPlayer]:
        """Build the reference below `scratch` and start its process, ready to transcribe the same clip."""
        folder = scratch / "yardstick"
        build_checkpoint(self.teacher, self._reference, folder, scratch)
        self._write_clip(scratch)
        with open_player(self._task(folder, "torch", "fp32"), "the reference model") as player:
            yield player

    def _write_clip(self, folder: Path) -> Path:
        """Write a clip of noise: to random weights all audio is the same."""
        noise = np.random.default_rng(0).normal(scale=0.1, size=round(self.seconds * SAMPLE_RATE))
        soundfile.write(folder / "clip.wav", noise.clip(-1, 1), SAMPLE_RATE)
        return folder / "clip.wav"

    def _task(self, folder: Path, runtime: str, precision: str) -> MeasuringTask:
        """Return the task of a measuring process, as `eval.latency.timing` reads it."""
        return MeasuringTask(
            folder=str(folder), runtime=runtime, precision=precision, threads=self.threads,
            clips=[[str(folder.parent / "clip.wav")]], runs=self.runs, warmup=2, tokens=self.tokens,
            language=self.language, task="transcribe",
        )  # fmt: skip


def _figures(timing: SystemTiming, tokens: int, size_mb: float) -> CostFigures:
    """Convert what a measuring process has measured."""
    mel_ms, encoder_ms, prompt_ms = timing.mel_ms.p50, timing.encoder_ms.p50, timing.prompt_ms.p50
    clip_ms = timing.clip_ms.p50
    return CostFigures(
        mel_ms=mel_ms, encoder_ms=encoder_ms, prompt_ms=prompt_ms,
        # All time after the first token, per token; this includes the choice among the logits.
        token_ms=(clip_ms - (mel_ms + encoder_ms + prompt_ms)) / (tokens - 1),
        clip_p50_ms=clip_ms, clip_p95_ms=timing.clip_ms.p95, rtf=timing.rtf, peak_rss_mb=timing.peak_rss_mb,
        size_mb=size_mb,
    )  # fmt: skip
