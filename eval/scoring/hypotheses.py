"""Transcribe the clips of every condition with a system, and keep the texts in files."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.decoding.long_form import Mode, transcribe_long
from eval.decoding.speculative import open_speculative
from eval.decoding.systems import System, open_transcriber
from eval.decoding.transcriber import Transcriber
from eval.scoring.accuracy_report import DraftScore
from eval.scoring.conditions import Condition, EvalClip
from recipes.core.atomic_files import write_json
from recipes.core.machine import usable_cores
from recipes.core.progress import track
from recipes.schema.eval_section import EvalSection

Texts = Mapping[str, Sequence[str]]
"""The texts of one system by the name of the condition, in the order of its clips and not normalised."""


class SystemTranscriber:
    """Transcribes test clips with one system; the model is loaded only if a text is still missing.

    Args:
        system: The system.
        section: The recipe's `eval` section.
        language: Language code; None for an English-only model.
        task: `transcribe` or `translate`.
    """

    def __init__(self, system: System, section: EvalSection, language: str | None, task: str):
        self.system, self.section, self.language, self.task = system, section, language, task
        # Exports transcribe one clip at a time, as a device does: dynamic int8 chooses its scales for a whole batch, so
        # the score of a batch would be that of another model.
        self.batch_size = section.batch_size if system.runtime == "torch" else 1
        self.threads = usable_cores()

    @cached_property
    def transcriber(self) -> Transcriber:
        """The loaded system."""
        return open_transcriber(self.system, self.threads, self.language, self.task)

    def texts(self, conditions: Sequence[Condition], folder: Path) -> Texts:
        """Return the system's texts by condition, and write them to `hypotheses-SYSTEM[.CONDITION].json` in `folder`.

        Files that an interrupted run has already written are read instead.
        """
        texts: dict[str, Sequence[str]] = {}
        for condition in conditions:
            file = folder / f"hypotheses-{self.system.name}{'.' if condition.name else ''}{condition.name}.json"
            if not file.is_file():
                write_json(file, self._transcribe_condition(condition))
            texts[condition.name] = json.loads(file.read_text())
        return texts

    def _transcribe_condition(self, condition: Condition) -> list[str]:
        label = f"eval {self.system.name} {condition.name}".strip()
        if condition.mode is None:
            return self.transcribe_clips(condition.clips, label)
        recordings = track(condition.clips, label, unit="recording")
        return [self._transcribe_recording(clip.read(), condition.mode) for clip in recordings]

    def transcribe_clips(self, clips: Sequence[EvalClip], label: str) -> list[str]:
        """Return the texts of clips within the teacher's window, transcribed in batches of similar length.

        A clip that is longer than the window of this system is transcribed in chunks. `label` names the progress.
        """
        window = self.transcriber.format.window_samples
        order = sorted(range(len(clips)), key=lambda index: -clips[index].seconds)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        texts = [""] * len(clips)
        for batch in track(batches, label, unit="batch"):
            samples = {index: clips[index].read() for index in batch}
            short = {index: clip for index, clip in samples.items() if len(clip) <= window}
            for index in samples.keys() - short.keys():
                texts[index] = self._transcribe_recording(samples[index], "chunked")
            max_tokens = self.section.max_tokens
            transcripts = self.transcriber.transcribe(list(short.values()), max_tokens=max_tokens) if short else []
            for index, transcript in zip(short, transcripts, strict=True):
                texts[index] = transcript.text
        return texts

    def _transcribe_recording(self, samples: np.ndarray, mode: Mode) -> str:
        max_tokens = self.section.max_tokens
        return transcribe_long(self.transcriber, samples, mode, batch_size=self.batch_size, max_tokens=max_tokens).text


class DraftedTeacher(SystemTranscriber):
    """The teacher with the student as its draft model (speculative decoding). Arguments as `SystemTranscriber`."""

    def __init__(self, teacher: System, student: System, section: EvalSection, language: str | None, task: str):
        super().__init__(teacher, section, language, task)
        self.runtime = open_speculative(teacher.folder, student.folder, self.threads)

    @cached_property
    def transcriber(self) -> Transcriber:
        """Both models as one runtime."""
        return Transcriber(self.runtime, self.system.folder, self.language, self.task)

    def score(self, test: Condition, teacher_texts: Texts) -> DraftScore:
        """Transcribe `eval.draft` clips, evenly spaced over the test set, and count drafted and accepted tokens.

        `teacher_texts` are the texts of the teacher without a draft, which the drafted texts are compared with.
        """
        count = min(self.section.draft, len(test.clips))
        indices = np.linspace(0, len(test.clips) - 1, count).round().astype(int).tolist()
        texts = self.transcribe_clips([test.clips[index] for index in indices], "eval draft")
        equal = sum(text == teacher_texts[""][index] for text, index in zip(texts, indices, strict=True))
        statistics = self.runtime.statistics
        return DraftScore(
            clips=count, equal_text=equal, drafted=statistics.drafted, accepted=statistics.accepted,
            passes=statistics.passes, tokens=statistics.written, acceptance=statistics.summary["acceptance"],
            tokens_per_pass=statistics.summary["tokens_per_pass"],
        )  # fmt: skip
