"""Stage `eval`: how well teacher, student and every export hear the test split.

    python -m eval.wer recipes/demo/recipe.yaml

Writes hypotheses-SYSTEM.json, and hypotheses-SYSTEM.CONDITION.json for noise and long recordings, as each is finished
(a killed run goes on after the last), and wer.json.
"""

import eval.startup  # noqa: F401

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.conditions import Clip, Condition, alone, by_set, clean, long_form, noisy
from eval.long_form import Mode, transcribe_long
from eval.metrics import normalizer
from eval.runtimes.format import Format
from eval.runtimes.transcriber import Transcriber
from eval.scores import Scorer, Texts
from eval.speculative import check_draft, open_speculative
from eval.systems import System, open_transcriber, systems
from eval.utterances import read_utterances
from recipes.errors import UserError, run_main
from recipes.flow import checkpoint
from recipes.models import model_folder
from recipes.schema import Recipe
from recipes.sections import Eval
from recipes.stage import arguments, open_stage, write_json


def main() -> None:
    """Transcribe with each system under each condition, score, compare with the teacher."""
    recipe, command = arguments("eval")
    if (section := recipe.eval) is None:
        raise UserError("eval: the recipe has no eval section; add `eval: {}` for its defaults")
    with open_stage(recipe, "eval", command) as work:
        # 1. Test utterances with a reference; the others cannot be scored.
        utterances = read_utterances(recipe.root / "corpus", "test")
        scored = [item for item in utterances if item.text]
        if not scored:
            raise UserError(
                "eval: expected test utterances with text, found none; add a test split or set `eval: null`"
            )
        # 2. The audio: as it is, under noise, noise alone, joined.
        test, folder = clean(scored), model_folder(recipe.teacher.model)
        if section.draft:
            check_draft(folder, checkpoint(recipe))
        window = Format.load(folder, recipe.teacher.language, recipe.teacher.task).window_samples
        noises = noisy(test, section.noise, recipe.seed) if section.noise else []
        silence = alone(section.noise, window, recipe.seed) if section.noise else None
        joined = long_form(test, section.long_form, recipe.seed) if section.long_form else []
        conditions = [test, *noises, *([silence] if silence else []), *joined]
        # 3. Texts, a system at a time.
        judged = systems(recipe)
        texts = {system.name: Listener(system, recipe, section).texts(conditions, work.folder) for system in judged}
        drafted = None
        if section.draft:
            drafted = Drafted(judged[0], judged[1], recipe, section).figures(test, texts[judged[0].name])
        # 4. Counts with intervals, each system beside the teacher on the same audio.
        scorer = Scorer(section, recipe.seed, normalizer(section.normalizer, folder))
        rows = [
            {"name": system.name, "role": system.role, "runtime": system.runtime, "precision": system.precision}
            | score(scorer, test, noises, silence, joined, texts[system.name], texts[judged[0].name])
            for system in tqdm(judged, "scores", unit="system")
        ]
        # 5. One file.
        result = {
            "normalizer": section.normalizer, "bootstrap": section.bootstrap, "sets": list(by_set(test.clips)),
            "command": command, "systems": rows, "samples": samples(test, texts, section.samples),
            "noise": {"noises": sorted({clip.id.rpartition("-")[0] for clip in silence.clips[1:]}),
                      "utterances": len(noises[0].clips)} if silence else None,
            "long_form": described(section, joined) if joined else None, "draft": drafted,
        }  # fmt: skip
        write_json(work.folder / "wer.json", result)
        work.finish(
            counts={"test": len(utterances), "without_reference": len(utterances) - len(scored)},
            metrics={row["name"]: row["macro"] for row in rows},
        )


class Listener:
    """A system that writes down what it hears, opened when there is something left to hear."""

    def __init__(self, system: System, recipe: Recipe, section: Eval):
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

    def _short(self, clips: Sequence[Clip], label: str) -> list[str]:
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


class Drafted(Listener):
    """The teacher while the student drafts for it."""

    def __init__(self, teacher: System, student: System, recipe: Recipe, section: Eval):
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


def score(
    scorer: Scorer, test: Condition, noises: Sequence[Condition], silence: Condition | None,
    joined: Sequence[Condition], mine: Texts, teachers: Texts,
) -> dict[str, Any]:  # fmt: skip
    """One system's row; the teacher's own is compared with nothing."""
    others = None if mine is teachers else teachers
    return {
        **scorer.short_form(test, mine, others),
        "regression": scorer.regression(test, mine, others) if others else None,
        "hallucination": scorer.hallucination(test, silence, mine),
        "noise": scorer.noise(test, noises, mine, others) if noises else None,
        "long_form": scorer.long_form(joined, mine) if joined else None,
    }


def described(section: Eval, joined: Sequence[Condition]) -> dict[str, Any]:
    """What the long recordings are."""
    assert section.long_form is not None
    clips = joined[0].clips
    return {
        "folder": str(section.long_form.folder) if section.long_form.folder else None,
        "pause_seconds": section.long_form.pause_seconds,
        "modes": list(section.long_form.modes),
        "sets": {
            name: {"recordings": len(places), "minutes": sum(clips[index].seconds for index in places) / 60}
            for name, places in by_set(clips).items()
        },
    }


def samples(test: Condition, texts: dict[str, Texts], count: int) -> list[dict[str, Any]]:
    """Transcripts for the report, evenly spaced over each test set."""
    return [
        {"id": test.clips[index].id, "set": name, "reference": test.clips[index].text,
         "texts": {system: said[""][index] for system, said in texts.items()}}
        for name, chosen in by_set(test.clips).items()
        for index in (chosen[:: max(1, len(chosen) // count)][:count] if count else [])
    ]  # fmt: skip


if __name__ == "__main__":
    run_main(main)
