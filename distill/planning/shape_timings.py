"""Shapes built with random weights, exported and timed on this machine; each is measured once and kept.

A machine that others share is faster now and slower then: the same file took 15.6 and 23.2 ms a clip within ten
minutes. So each shape transcribes in turn with a yardstick, a small model in PyTorch that stays the same; what counts
is the quotient of the two, times the yardstick's median over all measurements that are kept.

    CACHE/DIGEST/setting.json                  machine, versions, teacher, threads, clip: all else that figures rest on
    CACHE/DIGEST/4-4-30-all-onnx-int8.json     one measurement: encoder and decoder layers, window, tokens, artefact

A plan that is killed goes on after the last of them.
"""

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from distill.planning.cost_model import TIMES, Point
from distill.planning.random_students import Artefact, build_artefacts, build_checkpoint
from distill.planning.search_space import Candidate, PlannedTeacher
from eval.audio.recordings import SAMPLE_RATE
from eval.latency.measuring import run_task
from eval.latency.paired_timing import WAKE_S, ClipPlayer, open_player, time_in_turn
from eval.runtimes.registry import weight_files
from recipes.core.atomic_files import write_json
from recipes.core.machine import describe_machine
from recipes.engine.freshness import sha256_of_text
from recipes.schema.device_budget import MeasurementSettings


@dataclass(frozen=True)
class ShapeTimings:
    """How shapes are measured."""

    teacher: PlannedTeacher
    cache: Path
    threads: int
    seconds: float
    """Of the clip."""
    tokens: int
    """Decoded of it, whatever the weights say."""
    runs: int
    language: str | None

    def points(self, candidates: Sequence[Candidate], artefacts: Sequence[Artefact]) -> dict[Artefact, list[Point]]:
        """The candidates as measured in each artefact, in order; what is not kept yet is measured first."""
        missing = {
            candidate: wanted
            for candidate in candidates
            if (wanted := [artefact for artefact in artefacts if not self._file(candidate, artefact).is_file()])
        }
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "setting.json", self._setting)
            with tempfile.TemporaryDirectory() as scratch, self._yardstick(Path(scratch)) as yardstick:
                for candidate, wanted in tqdm(missing.items(), "measuring", unit="shape"):
                    self._measure(candidate, wanted, yardstick)
        usual_ms = float(np.median([row["yardstick_ms"] for row in map(_read, self.folder.glob("*-*.json"))]))
        return {
            artefact: [self._point(each, _read(self._file(each, artefact)), usual_ms) for each in candidates]
            for artefact in artefacts
        }  # fmt: skip

    @property
    def folder(self) -> Path:
        """Of all that is measured alike."""
        return self.cache / sha256_of_text(json.dumps(self._setting, sort_keys=True))[:16]

    @property
    def _smallest(self) -> Candidate:
        """The yardstick: a layer each, and a window just as long as the clip."""
        return Candidate(1, 1, math.ceil(self.seconds), None)

    @property
    def _setting(self) -> dict[str, Any]:
        return {
            "machine": describe_machine(), "teacher": asdict(self.teacher.shape), "threads": self.threads,
            "clip_seconds": self.seconds, "tokens": self.tokens, "runs": self.runs,
            "yardstick": asdict(self._smallest), "awake_s": WAKE_S,
        }  # fmt: skip

    def _file(self, candidate: Candidate, artefact: Artefact) -> Path:
        parts = [str(value) for value in asdict(candidate).values()]
        return self.folder / f"{'-'.join([*parts, *artefact]).replace('None', 'all')}.json"

    def _point(self, candidate: Candidate, row: dict[str, Any], usual_ms: float) -> Point:
        """At the machine's usual speed."""
        factor = row["quotient"] * usual_ms / row["figures"]["clip_p50_ms"]
        figures = {key: value * (factor if key in TIMES else 1) for key, value in row["figures"].items()}
        return replace(self.teacher.cut(candidate), vocabulary=row["vocabulary"]), figures

    def _measure(self, candidate: Candidate, artefacts: Sequence[Artefact], yardstick: ClipPlayer) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder, vocabulary = build_artefacts(
                self.teacher, candidate, artefacts, self._clip(Path(scratch)), Path(scratch), self.language
            )
            for runtime, precision in artefacts:
                task, name = self._task(folder, runtime, precision), f"{runtime}-{precision}"
                row = run_task(
                    [sys.executable, "-m", "eval.latency.timing"], name, task, MeasurementSettings(self.threads, None)
                )
                with open_player(task, name) as this:
                    this_N, yardstick_N = time_in_turn(this, yardstick, 1, self.runs)
                size = sum(file.stat().st_size for file in weight_files(runtime, folder, precision)) / 1e6
                write_json(self._file(candidate, (runtime, precision)), {
                    "vocabulary": vocabulary, "quotient": float(np.median(this_N / yardstick_N)),
                    "yardstick_ms": 1e3 * float(np.median(yardstick_N)),
                    "figures": {**_figures(row, self.tokens), "size_mb": size},
                })  # fmt: skip

    @contextmanager
    def _yardstick(self, scratch: Path) -> Iterator[ClipPlayer]:
        """Ready to transcribe the same clip."""
        folder = scratch / "yardstick"
        build_checkpoint(self.teacher, self._smallest, folder, scratch)
        self._clip(scratch)
        with open_player(self._task(folder, "torch", "fp32"), "the yardstick") as opened:
            yield opened

    def _clip(self, folder: Path) -> Path:
        """Noise: random weights hear nothing anyway."""
        noise = np.random.default_rng(0).normal(scale=0.1, size=round(self.seconds * SAMPLE_RATE))
        soundfile.write(folder / "clip.wav", noise.clip(-1, 1), SAMPLE_RATE)
        return folder / "clip.wav"

    def _task(self, folder: Path, runtime: str, precision: str) -> dict[str, Any]:
        return {
            "clips": [[str(folder.parent / "clip.wav")]], "runs": self.runs, "warmup": 2, "tokens": self.tokens,
            "details": False, "language": self.language, "task": "transcribe", "folder": str(folder),
            "runtime": runtime, "precision": precision, "threads": self.threads,
        }  # fmt: skip


def _figures(row: dict[str, Any], tokens: int) -> dict[str, float]:
    """Of a measuring process's row, what `costs` fits."""
    parts = {key: row[key]["p50"] for key in ("mel_ms", "encoder_ms", "prompt_ms")}
    p50 = row["clip_ms"]["p50"]
    # What follows the first token, by token: choosing among the logits is part of it.
    token_ms = (p50 - sum(parts.values())) / (tokens - 1)
    return parts | {
        "token_ms": token_ms, "clip_p50_ms": p50, "clip_p95_ms": row["clip_ms"]["p95"], "rtf": row["rtf"],
        "peak_rss_mb": row["peak_rss_mb"],
    }  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found
