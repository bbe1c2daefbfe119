"""TODO: eval.scoring.listeners."""

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.decoding.long_form import Mode, transcribe_long
from eval.decoding.speculative import open_speculative
from eval.decoding.systems import System, open_transcriber
from eval.decoding.transcriber import Transcriber
from eval.scoring.conditions import Condition, TestClip
from eval.scoring.scorer import Texts
from recipes.core.atomic_files import write_json
from recipes.schema.eval_section import EvalSection
from recipes.schema.recipe import Recipe


class SystemTranscriber:
    """A system that writes down what it hears, opened when there is something left to hear."""

    def __init__(self, system: System, recipe: Recipe, section: EvalSection):
        self.system, self.recipe, self.section = system, recipe, section
        # Exports run one clip at a time, as the device does: dynamic int8 scales its activations over the whole batch,
        # so a batched score would be another model's.
        self.batch_size = section.batch_size if system.runtime == "torch" else 1
        self.threads = len(os.sched_getaffinity(0))

    @cached_property
    def transcriber(self) -> Transcriber:
        """The system, loaded."""
        teacher = self.recipe.teacher
        return open_transcriber(self.system, self.threads, teacher.language, teacher.task)

    def texts(self, conditions: Sequence[Condition], folder: Path) -> Texts:
        """Its texts by condition, from the files where an earlier try already wrote them."""
        found: dict[str, list[str]] = {}
        for condition in conditions:
            file = folder / f"hypotheses-{self.system.name}{'.' if condition.name else ''}{condition.name}.json"
            if not file.is_file():
                label = f"eval {self.system.name} {condition.name}".strip()
                if (mode := condition.mode) is not None:
                    said = [self._long(clip.read(), mode) for clip in tqdm(condition.clips, label, unit="recording")]
                else:
                    said = self._short(condition.clips, label)
                write_json(file, said)
            found[condition.name] = json.loads(file.read_text())
        return found

    def _short(self, clips: Sequence[TestClip], label: str) -> list[str]:
        """Texts of the clips; a system with a shorter window than the teacher's reads what is beyond it in chunks."""
        window = self.transcriber.format.window_samples
        order = sorted(range(len(clips)), key=lambda index: -clips[index].seconds)
        texts = [""] * len(clips)
        for start in tqdm(range(0, len(order), self.batch_size), label, unit="batch"):
            batch = order[start : start + self.batch_size]
            samples = {index: clips[index].read() for index in batch}
            fit = {index: clip for index, clip in samples.items() if len(clip) <= window}
            for index in samples.keys() - fit.keys():
                texts[index] = self._long(samples[index], "chunked")
            said = self.transcriber.transcribe(list(fit.values()), max_tokens=self.section.max_tokens) if fit else []
            for index, transcript in zip(fit, said, strict=True):
                texts[index] = transcript.text
        return texts

    def _long(self, samples: np.ndarray, mode: Mode) -> str:
        max_tokens = self.section.max_tokens
        return transcribe_long(self.transcriber, samples, mode, batch_size=self.batch_size, max_tokens=max_tokens).text


class DraftedTeacher(SystemTranscriber):
    """The teacher while the student drafts for it."""

    def __init__(self, teacher: System, student: System, recipe: Recipe, section: EvalSection):
        super().__init__(teacher, recipe, section)
        self.runtime = open_speculative(teacher.folder, student.folder, self.threads)

    @cached_property
    def transcriber(self) -> Transcriber:
        """The pair."""
        teacher = self.recipe.teacher
        return Transcriber(self.runtime, self.system.folder, teacher.language, teacher.task)

    def figures(self, test: Condition, teachers: Texts) -> dict[str, Any]:
        """What became of the drafts on clips evenly spaced over the test set, and how many texts are the teacher's."""
        count = min(self.section.draft, len(test.clips))
        places = np.linspace(0, len(test.clips) - 1, count).round().astype(int).tolist()
        said = self._short([test.clips[place] for place in places], "eval draft")
        equal = sum(text == teachers[""][place] for text, place in zip(said, places, strict=True))
        return {"clips": count, "equal_text": equal, **self.runtime.acceptance.figures}
