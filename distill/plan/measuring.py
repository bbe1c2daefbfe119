"""Shapes built with random weights, exported and timed on this machine; each is measured once and kept.

A measurement is a file of its own below the cache's folder, named by a hash of all that it depends on: machine,
versions, teacher, shape, artefact, threads, clip. A plan that is killed goes on after the last of them.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import ascii_letters, digits, punctuation
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from distill.compress import Material
from distill.compress.vocabulary import trim
from distill.compress.window import shorten
from distill.export import Student
from distill.export.__main__ import export
from distill.export.layout import write_layout
from distill.plan.costs import Point
from distill.plan.space import Candidate, Teacher
from distill.shapes import random_model
from distill.student import copy_processors, save_model
from eval.audio import SAMPLE_RATE
from eval.benchmark import run_task
from eval.runtimes import weight_files
from eval.runtimes.torch import load_model
from recipes.compression import Vocabulary, Window
from recipes.devices import Setting
from recipes.freshness import text_digest
from recipes.machine import machine
from recipes.sections import Export
from recipes.stage import write_json

Artefact = tuple[str, str]
"""Runtime and precision."""


@dataclass(frozen=True)
class Measuring:
    """How shapes are measured."""

    teacher: Teacher
    cache: Path
    threads: int
    seconds: float
    """Of the clip."""
    tokens: int
    """Decoded of it, whatever the weights say."""
    runs: int
    language: str | None

    def points(self, candidates: Sequence[Candidate], artefacts: Sequence[Artefact]) -> dict[Artefact, list[Point]]:
        """The candidates as measured in each artefact, in order."""
        found: dict[Artefact, list[Point]] = {artefact: [] for artefact in artefacts}
        self.cache.mkdir(parents=True, exist_ok=True)
        for candidate in tqdm(candidates, "measuring", unit="shape"):
            wanted = [artefact for artefact in artefacts if not self._file(candidate, artefact).is_file()]
            if wanted:
                self._measure(candidate, wanted)
            for artefact in artefacts:
                kept = json.loads(self._file(candidate, artefact).read_text())
                shape = replace(self.teacher.cut(candidate), vocabulary=kept["vocabulary"])
                found[artefact].append((shape, kept["figures"]))
        return found

    def _file(self, candidate: Candidate, artefact: Artefact) -> Path:
        return self.cache / f"{text_digest(json.dumps(self._key(candidate, artefact), sort_keys=True))[:16]}.json"

    def _key(self, candidate: Candidate, artefact: Artefact) -> dict[str, Any]:
        runtime, precision = artefact
        return {
            "machine": machine(), "runtime": runtime, "precision": precision, "threads": self.threads,
            "clip_seconds": self.seconds, "decoded": self.tokens, "runs": self.runs,
            "teacher": asdict(self.teacher.shape), **asdict(candidate),
        }  # fmt: skip

    def _measure(self, candidate: Candidate, artefacts: Sequence[Artefact]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            clip = Path(scratch) / "clip.wav"
            noise = np.random.default_rng(0).normal(scale=0.1, size=round(self.seconds * SAMPLE_RATE))
            soundfile.write(clip, noise.clip(-1, 1), SAMPLE_RATE)
            folder, vocabulary = exported(self.teacher, candidate, artefacts, clip, Path(scratch), self.language)
            for artefact in artefacts:
                figures = self._timed(folder, clip, artefact)
                key = self._key(candidate, artefact)
                write_json(self._file(candidate, artefact), {**key, "vocabulary": vocabulary, "figures": figures})

    def _timed(self, folder: Path, clip: Path, artefact: Artefact) -> dict[str, float]:
        runtime, precision = artefact
        task = {
            "clips": [[str(clip)]], "runs": self.runs, "warmup": 2, "tokens": self.tokens, "details": False,
            "language": self.language, "task": "transcribe", "folder": str(folder), "runtime": runtime,
            "precision": precision, "threads": self.threads,
        }  # fmt: skip
        command = [sys.executable, "-m", "eval.latency"]
        row = run_task(command, f"{runtime}-{precision}", task, Setting(self.threads, None))
        parts = {key: row[key]["p50"] for key in ("mel_ms", "encoder_ms", "prompt_ms")}
        p50 = row["clip_ms"]["p50"]
        size = sum(file.stat().st_size for file in weight_files(runtime, folder, precision)) / 1e6
        # What follows the first token, by token: the choice among logits is part of it.
        token_ms = max(p50 - sum(parts.values()), 1e-6) / max(self.tokens - 1, 1)
        return parts | {
            "token_ms": token_ms, "clip_p50_ms": p50, "clip_p95_ms": row["clip_ms"]["p95"], "rtf": row["rtf"],
            "peak_rss_mb": row["peak_rss_mb"], "size_mb": size,
        }  # fmt: skip


def exported(
    teacher: Teacher,
    candidate: Candidate,
    artefacts: Sequence[Artefact],
    clip: Path,
    scratch: Path,
    language: str | None,
) -> tuple[Path, int]:
    """A model folder with the artefacts of a student of random weights, and the size of its vocabulary."""
    checkpoint, folder = scratch / "student", scratch / "export"
    build(teacher, candidate, checkpoint, scratch)
    write_layout(checkpoint, folder)
    section: dict[str, list[str]] = {}
    for runtime, precision in artefacts:
        section.setdefault(runtime, []).append(precision)
    student = Student(load_model(checkpoint), checkpoint, [[str(clip)]], [None], language)
    export(student, folder, Export.model_validate({"onnx": [], **section}))
    return folder, student.model.config.vocab_size


def build(teacher: Teacher, candidate: Candidate, folder: Path, scratch: Path) -> None:
    """A student of random weights, its window and tokens cut as the stage `compress` cuts them."""
    whole, processors = scratch / "whole", scratch / "processors"
    shape = teacher.shape.cut(candidate.encoder_layers, candidate.decoder_layers)
    random_model(shape, teacher.processors, whole)
    processors.mkdir()
    copy_processors(teacher.processors, processors)
    # The commonest tokens in these characters, as far as the labels' own are not known yet.
    material = Material([], [f"{ascii_letters} {digits} {punctuation}"], 0, processors)
    model = load_model(whole)
    if candidate.seconds < teacher.seconds:
        model, _ = shorten(model, Window(seconds=candidate.seconds), material)
    if candidate.tokens is not None:
        model, _ = trim(model, Vocabulary(tokens=candidate.tokens), material)
    save_model(model, folder, processors=processors)
