"""Stage `labels`: the teacher transcribes the train and validation audio, or its own transcripts are taken.

accelerate launch data_prep/pseudo_label.py recipes/demo/recipe.yaml
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm

from data_prep.labels.batched_labelling import _agreed_size, _fits, _speed, label_batch, length_sorted, read_ahead
from data_prep.labels.label_sets import copy_label_set
from data_prep.labels.label_store import Label, finished_parts, merge_parts, read_labels, shards_complete, write_part
from data_prep.labels.labelling_teacher import LabellingTeacher
from data_prep.labels.reference_labels import reference_labels
from eval.audio.recordings import SAMPLE_RATE
from eval.audio.utterances import Utterance, read_utterances
from recipes.core.errors import UserError, run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.stage_folder import StageFolder, open_stage, parse_stage_arguments
from recipes.schema.labels_section import LabelsSection
from recipes.schema.recipe import Recipe


def main() -> None:
    """Sort by length, divide among the processes, transcribe what is missing, merge."""
    recipe, command = parse_stage_arguments("labels")
    if (section := recipe.labels) is None:
        raise UserError("labels: the recipe has no labels section; add `labels: {}` for its defaults")
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    main_process = processes.is_main_process
    with open_stage(recipe, "labels", command, main=main_process, wait=processes.wait_for_everyone) as work:
        utterances = read_utterances(recipe.root / "corpus", "train", "validation")
        if section.source is not None:
            if main_process:
                copy_label_set(section.source, utterances, work.folder)
        elif section.text != "teacher":
            if main_process:
                write_part(work.folder, 0, reference_labels(recipe, utterances))
                merge_parts(work.folder, len(utterances), section.shard_rows)
        else:
            if not shards_complete(work.folder, len(utterances)):
                label_all(recipe, section, work, utterances, processes)
            processes.wait_for_everyone()
            if main_process:
                merge_parts(work.folder, len(utterances), section.shard_rows)
        if main_process:
            labels = read_labels(work.folder)
            rate = _speed(work.folder, processes.num_processes)
            work.finish(
                counts=counts(labels),
                metrics=summary(labels, work.folder)
                | {"audio_seconds_per_second": rate, "processes": processes.num_processes},
            )


def label_all(
    recipe: Recipe, section: LabelsSection, work: StageFolder, utterances: Sequence[Utterance], processes: PartialState
) -> None:
    """Every utterance into a part file, each by one of the processes."""
    # 1. The teacher, one copy a process.
    folder = resolve_model_folder(recipe.teacher.model)
    teacher = LabellingTeacher(folder, recipe.teacher, section, processes.device)
    _fits(utterances, teacher.format.window_samples / SAMPLE_RATE)
    # 2. Batches of like length; the longest first, so that memory trouble shows at once.
    size = _agreed_size(work, section, teacher, processes)
    batches = length_sorted(utterances, size)
    # 3. Of what is missing, process i takes every Nth batch.
    done = finished_parts(work.folder)
    processes.wait_for_everyone()
    missing = [number for number in range(len(batches)) if number not in done]
    mine = missing[processes.process_index :: processes.num_processes]
    bar = tqdm(mine, "labels", unit="batch", disable=not processes.is_main_process)
    started = time.perf_counter()
    with (work.folder / f"speed-{processes.process_index}.txt").open("a") as speed:
        for number, (batch, clips) in zip(bar, read_ahead([batches[number] for number in mine]), strict=True):
            write_part(work.folder, number, label_batch(teacher, batch, clips), section.temperature)
            started, before = time.perf_counter(), started
            speed.write(f"{sum(item.seconds for item in batch)} {started - before}\n")
    processes.wait_for_everyone()


def counts(labels: Sequence[Label]) -> dict[str, int]:
    """How many there are, and how many could not be made."""
    return {
        "utterances": len(labels),
        "errors": sum(label.error is not None for label in labels),
        "sampled": sum(label.plain.temperature > 0 for label in labels),
    }


def summary(labels: Sequence[Label], folder: Path) -> dict[str, Any]:
    """What the report says of the labels."""
    hours = sum(label.seconds for label in labels) / 3600
    size = sum(file.stat().st_size for file in folder.glob("labels-*.parquet"))
    return {
        "audio_hours": round(hours, 4),
        "mean_logprob": statistics.fmean(label.plain.mean_logprob for label in labels) if labels else None,
        "store_mb_per_hour": round(size / 1e6 / hours, 3) if hours else None,
    }


if __name__ == "__main__":
    run_main(main)
