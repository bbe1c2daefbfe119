"""Stage `eval`: how well teacher, student and every export hear the test split.

    python -m eval.accuracy recipes/demo/recipe.yaml

Writes hypotheses-SYSTEM.json, and hypotheses-SYSTEM.CONDITION.json for noise and long recordings, as each is finished
(a killed run goes on after the last), and wer.json.
"""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from eval.audio.utterances import read_utterances
from eval.decoding.speculative import check_draft
from eval.decoding.systems import list_systems
from eval.runtimes.model_format import ModelFormat
from eval.scoring.conditions import (
    Condition,
    clean_condition,
    clips_by_test_set,
    long_form_conditions,
    noise_only_condition,
    noisy_conditions,
)
from eval.scoring.error_rates import normalizer
from eval.scoring.listeners import DraftedTeacher, SystemTranscriber
from eval.scoring.scorer import Scorer, Texts
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError, run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.eval_section import EvalSection


def main() -> None:
    """Transcribe with each system under each condition, score, compare with the teacher."""
    recipe, command = parse_stage_arguments("eval")
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
        test, folder = clean_condition(scored), resolve_model_folder(recipe.teacher.model)
        if section.draft:
            check_draft(folder, student_folder(recipe))
        window = ModelFormat.load(folder, recipe.teacher.language, recipe.teacher.task).window_samples
        noises = noisy_conditions(test, section.noise, recipe.seed) if section.noise else []
        silence = noise_only_condition(section.noise, window, recipe.seed) if section.noise else None
        joined = long_form_conditions(test, section.long_form, recipe.seed) if section.long_form else []
        conditions = [test, *noises, *([silence] if silence else []), *joined]
        # 3. Texts, a system at a time.
        judged = list_systems(recipe)
        texts = {
            system.name: SystemTranscriber(system, recipe, section).texts(conditions, work.folder) for system in judged
        }
        drafted = None
        if section.draft:
            drafted = DraftedTeacher(judged[0], judged[1], recipe, section).figures(test, texts[judged[0].name])
        # 4. Counts with intervals, each system beside the teacher on the same audio.
        scorer = Scorer(section, recipe.seed, normalizer(section.normalizer, folder))
        rows = [
            {"name": system.name, "role": system.role, "runtime": system.runtime, "precision": system.precision}
            | score_system(scorer, test, noises, silence, joined, texts[system.name], texts[judged[0].name])
            for system in tqdm(judged, "scores", unit="system")
        ]
        # 5. One file.
        result = {
            "normalizer": section.normalizer,
            "bootstrap": section.bootstrap,
            "sets": list(clips_by_test_set(test.clips)),
            "command": command,
            "systems": rows,
            "samples": sample_transcripts(test, texts, section.samples),
            "noise": {
                "noises": sorted({clip.id.rpartition("-")[0] for clip in silence.clips[1:]}),
                "utterances": len(noises[0].clips),
            }
            if silence
            else None,
            "long_form": describe_long_form(section, joined) if joined else None,
            "draft": drafted,
        }
        write_json(work.folder / "wer.json", result)
        work.finish(
            counts={"test": len(utterances), "without_reference": len(utterances) - len(scored)},
            metrics={row["name"]: row["macro"] for row in rows},
        )


def score_system(
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


def describe_long_form(section: EvalSection, joined: Sequence[Condition]) -> dict[str, Any]:
    """What the long recordings are."""
    assert section.long_form is not None
    clips = joined[0].clips
    return {
        "folder": str(section.long_form.folder) if section.long_form.folder else None,
        "pause_seconds": section.long_form.pause_seconds,
        "modes": list(section.long_form.modes),
        "sets": {
            name: {"recordings": len(places), "minutes": sum(clips[index].seconds for index in places) / 60}
            for name, places in clips_by_test_set(clips).items()
        },
    }


def sample_transcripts(test: Condition, texts: dict[str, Texts], count: int) -> list[dict[str, Any]]:
    """Transcripts for the report, evenly spaced over each test set."""
    return [
        {"id": test.clips[index].id, "set": name, "reference": test.clips[index].text,
         "texts": {system: said[""][index] for system, said in texts.items()}}
        for name, chosen in clips_by_test_set(test.clips).items()
        for index in (chosen[:: max(1, len(chosen) // count)][:count] if count else [])
    ]  # fmt: skip


if __name__ == "__main__":
    run_main(main)
