"""Stage `eval`: measure how accurately the teacher, the student and every export transcribe the test split.

    python -m eval.accuracy recipes/demo/recipe.yaml

Writes the texts of every system to hypotheses-SYSTEM.json, and to hypotheses-SYSTEM.CONDITION.json for noise and long
recordings; an interrupted stage goes on with the files that are missing. Writes all scores to wer.json
(`eval.scoring.accuracy_report`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from eval.audio.utterances import Utterance, read_utterances
from eval.decoding.speculative import check_draft
from eval.decoding.systems import list_systems
from eval.runtimes.model_format import ModelFormat
from eval.scoring.accuracy_report import (
    AccuracyReport,
    LongFormSettings,
    LongFormSize,
    NoiseSettings,
    SampleTranscript,
)
from eval.scoring.conditions import Condition, EvalConditions, clean_condition, clips_by_test_set
from eval.scoring.error_rates import normalizer
from eval.scoring.hypotheses import DraftedTeacher, SystemTranscriber, Texts
from eval.scoring.scorer import Scorer
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError, run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.core.progress import track
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.eval_section import EvalSection


def main() -> None:
    """Transcribe every condition with every system, score the texts, and compare them with the teacher's."""
    recipe, command = parse_stage_arguments("eval")
    if (section := recipe.eval) is None:
        raise UserError("eval: expected a section, found none; add `eval: {}` to the recipe for its defaults")
    with open_stage(recipe, "eval", command) as work:
        # 1. The test utterances and the systems.
        utterances = read_utterances(recipe.root / "corpus", "test")
        teacher, student = resolve_model_folder(recipe.teacher.model), student_folder(recipe)
        language, task = recipe.teacher.language, recipe.teacher.task
        systems = list_systems(teacher, student, recipe.root / "export" / "model", recipe.export.artefacts)
        if section.draft:
            check_draft(teacher, student)
        # 2. What the texts are compared with: transcripts, or the teacher's own texts.
        if section.reference == "teacher":
            teacher_transcriber = SystemTranscriber(systems[0], section, language, task)
            scored = with_teacher_texts(utterances, teacher_transcriber, work.folder)
        else:
            scored = [utterance for utterance in utterances if utterance.text]
        if not any(utterance.text for utterance in scored):
            raise UserError(
                f"eval: expected test utterances with text, found none among {len(utterances)}; add a test split with "
                "transcripts, or set eval.reference: teacher, or set `eval: null`"
            )
        # 3. The conditions: the test set as it is, with noise, noise without speech, long recordings.
        window_samples = ModelFormat.load(teacher, language, task).window_samples
        conditions = EvalConditions.make(scored, section, window_samples, recipe.seed)
        # 4. The texts of each system.
        texts = {
            system.name: SystemTranscriber(system, section, language, task).texts(conditions.all, work.folder)
            for system in systems
        }
        draft = None
        if section.draft:
            drafted_teacher = DraftedTeacher(systems[0], systems[1], section, language, task)
            draft = drafted_teacher.score(conditions.test, texts[systems[0].name])
        # 5. The scores of each system, and its differences to the teacher.
        scorer = Scorer(section.bootstrap, recipe.seed, normalizer(section.normalizer, teacher))
        rows = [
            scorer.row(system, conditions, texts[system.name], None if system is systems[0] else texts[systems[0].name])
            for system in track(systems, "scores", unit="system")
        ]
        # 6. One file.
        report = AccuracyReport(
            normalizer=section.normalizer, reference=section.reference, bootstrap=section.bootstrap,
            sets=list(clips_by_test_set(conditions.test.clips)), command=command, systems=rows,
            samples=sample_transcripts(conditions.test, texts, section.samples),
            noise=describe_noise(conditions), long_form=describe_long_form(section, conditions), draft=draft,
        )  # fmt: skip
        write_json(work.folder / "wer.json", asdict(report))
        work.finish(
            counts={"test": len(utterances), "without_reference": len(utterances) - len(scored)},
            metrics={row.name: asdict(row.macro) for row in rows},
        )


def with_teacher_texts(utterances: Sequence[Utterance], teacher: SystemTranscriber, folder: Path) -> list[Utterance]:
    """Return the utterances with the teacher's text of each as its transcript.

    The texts are written to `folder` as the teacher's hypotheses, so that they are not made a second time.
    """
    test = clean_condition([replace(utterance, text="") for utterance in utterances])
    texts = teacher.texts([test], folder)[""]
    return [replace(utterance, text=text) for utterance, text in zip(utterances, texts, strict=True)]


def describe_noise(conditions: EvalConditions) -> NoiseSettings | None:
    """Return the names of the noises and the number of noisy utterances; None without noise."""
    if conditions.silence is None:
        return None
    noises = {clip.id.rpartition("-")[0] for clip in conditions.silence.clips[1:]}
    return NoiseSettings(sorted(noises), len(conditions.noisy[0].clips))


def describe_long_form(section: EvalSection, conditions: EvalConditions) -> LongFormSettings | None:
    """Return what the long recordings are and how many there are; None without long recordings."""
    if section.long_form is None:
        return None
    clips = conditions.long_form[0].clips
    sizes = {
        name: LongFormSize(len(indices), sum(clips[index].seconds for index in indices) / 60)
        for name, indices in clips_by_test_set(clips).items()
    }
    folder = str(section.long_form.folder) if section.long_form.folder else None
    return LongFormSettings(folder, section.long_form.pause_seconds, list(section.long_form.modes), sizes)


def sample_transcripts(test: Condition, texts: Mapping[str, Texts], count: int) -> list[SampleTranscript]:
    """Return `count` transcripts of each test set for the report, evenly spaced, as every system wrote them."""
    return [
        SampleTranscript(
            test.clips[index].id, name, test.clips[index].text,
            {system: by_condition[""][index] for system, by_condition in texts.items()},
        )
        for name, indices in clips_by_test_set(test.clips).items()
        for index in (indices[:: max(1, len(indices) // count)][:count] if count else [])
    ]  # fmt: skip


if __name__ == "__main__":
    run_main(main)
