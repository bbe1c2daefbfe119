"""Stage `eval`: WER and CER of teacher, student and every export on the test split.

    python -m eval.wer recipes/demo/recipe.yaml

Writes hypotheses-SYSTEM.json as each system finishes (a killed run goes on after the last) and wer.json.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.audio import read_audio
from eval.error_rate import ErrorRate
from eval.metrics import Errors, bootstrap, count_errors, normalizer
from eval.systems import System, open_transcriber, systems
from eval.utterances import Utterance, read_utterances
from recipes.errors import UserError, run_main
from recipes.models import model_folder
from recipes.schema import Recipe
from recipes.sections import Eval
from recipes.stage import arguments, open_stage, write_json


def main() -> None:
    """Transcribe with each system, score each test set, take the intervals."""
    recipe, command = arguments("eval")
    if (section := recipe.eval) is None:
        raise UserError("eval: the recipe has no eval section; add `eval: {}` for its defaults")
    with open_stage(recipe, "eval", command) as work:
        # 1. Test utterances with a reference; the others cannot be scored.
        test = read_utterances(recipe.root / "corpus", "test")
        scored = [item for item in test if item.text]
        if not scored:
            raise UserError(
                "eval: expected test utterances with text, found none; add a test split or set `eval: null`"
            )
        # 2. Hypotheses, a system at a time.
        judged = systems(recipe)
        texts = {
            system.name: hypotheses(system, scored, recipe, section, work.folder / f"hypotheses-{system.name}.json")
            for system in judged
        }
        # 3. Error rates with intervals, each system beside the teacher on the same utterances.
        normalize = normalizer(section.normalizer, model_folder(recipe.teacher.model))
        references = [normalize(item.text or "") for item in scored]
        normal = {name: [normalize(text) for text in values] for name, values in texts.items()}
        sets = list(dict.fromkeys(item.source for item in scored))
        rows = [score(system, judged[0], scored, sets, references, normal, section, recipe.seed) for system in judged]
        # 4. One file.
        result = {
            "normalizer": section.normalizer, "bootstrap": section.bootstrap, "sets": sets, "command": command,
            "systems": rows, "samples": samples(scored, sets, texts, section.samples),
        }  # fmt: skip
        write_json(work.folder / "wer.json", result)
        work.finish(
            counts={"test": len(test), "without_reference": len(test) - len(scored)},
            metrics={row["name"]: row["macro"] for row in rows},
        )


def hypotheses(system: System, utterances: Sequence[Utterance], recipe: Recipe, section: Eval, file: Path) -> list[str]:
    """The system's text of each utterance, from the file when an earlier try already wrote it.

    Exports run one clip at a time, as the device does: dynamic int8 scales its activations over the whole batch, so
    a batched score would be another model's.
    """
    if file.is_file():
        texts: list[str] = json.loads(file.read_text())
        return texts
    threads = len(os.sched_getaffinity(0))
    transcriber = open_transcriber(system, threads, recipe.teacher.language, recipe.teacher.task)
    size = section.batch_size if system.runtime == "torch" else 1
    order = sorted(range(len(utterances)), key=lambda index: -utterances[index].seconds)
    texts = [""] * len(utterances)
    for start in tqdm(range(0, len(order), size), f"eval {system.name}", unit="batch"):
        batch = order[start : start + size]
        clips = [read_audio(utterances[index].audio) for index in batch]
        for index, transcript in zip(batch, transcriber.transcribe(clips, max_tokens=section.max_tokens), strict=True):
            texts[index] = transcript.text
    write_json(file, texts)
    return texts


def score(
    system: System, teacher: System, utterances: Sequence[Utterance], sets: Sequence[str], references: Sequence[str],
    texts: dict[str, list[str]], section: Eval, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """One system's row: each test set, and the unweighted mean over the sets."""
    results: dict[str, Any] = {}
    for name in sets:
        chosen = [index for index, item in enumerate(utterances) if item.source == name]
        truth = [references[index] for index in chosen]
        said = [texts[system.name][index] for index in chosen]
        words, characters = count_errors(truth, said), count_errors(truth, said, characters=True)
        counted = ErrorRate("wer", keep_in_memory=True).compute(predictions=said, references=truth)
        assert counted is not None
        results[name] = {
            "wer": _interval(words, None, section, seed),
            "cer": _interval(characters, None, section, seed),
            "utterances": len(chosen),
            "words": counted["units"],
            **{kind: counted[kind] for kind in ("substitutions", "deletions", "insertions")},
            "versus_teacher": None
            if system is teacher
            else _interval(words, count_errors(truth, [texts[teacher.name][index] for index in chosen]), section, seed),
        }
    macro = {rate: sum(results[name][rate]["value"] for name in sets) / len(sets) for rate in ("wer", "cer")}
    identity = {
        "name": system.name,
        "role": system.role,
        "runtime": system.runtime,
        "precision": system.precision,
    }
    return {**identity, "results": results, "macro": macro}


def _interval(errors: Errors, minus: Errors | None, section: Eval, seed: int) -> dict[str, float]:
    return asdict(bootstrap(errors, minus, resamples=section.bootstrap, seed=seed))


def samples(
    utterances: Sequence[Utterance], sets: Sequence[str], texts: dict[str, list[str]], count: int
) -> list[dict[str, Any]]:
    """Transcripts for the report, evenly spaced over each test set."""
    shown = []
    for name in sets:
        chosen = [index for index, item in enumerate(utterances) if item.source == name]
        for index in chosen[:: max(1, len(chosen) // count)][:count] if count else []:
            item = utterances[index]
            shown.append(
                {"id": item.id, "set": name, "reference": item.text,
                 "texts": {system: values[index] for system, values in texts.items()}}
            )  # fmt: skip
    return shown


if __name__ == "__main__":
    run_main(main)
