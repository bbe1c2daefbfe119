"""Stage `labels`: make a label for every utterance of the train and validation splits.

    accelerate launch data_prep/pseudo_label.py recipes/demo/recipe.yaml

By default the teacher transcribes the audio, in as many processes as accelerate starts. A recipe may instead use a
finished label set (`labels.source`) or the sources' own transcripts (`labels.text`). Writes labels-NNNNN.parquet
(columns: `data_prep.labels.label_store`). An interrupted run continues after the last finished batch.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from data_prep.labels.batched_labelling import (
    agreed_batch_size,
    check_fits_window,
    label_batch,
    length_sorted,
    read_ahead,
)
from data_prep.labels.label_sets import copy_label_set
from data_prep.labels.label_statistics import count_labels, measure_label_set, record_speed, take_speed
from data_prep.labels.label_store import finished_parts, merge_parts, read_labels, shards_complete, write_part
from data_prep.labels.labelling_teacher import LabellingTeacher
from data_prep.labels.reference_labels import reference_labels
from eval.audio.recordings import SAMPLE_RATE
from eval.audio.utterances import Utterance, read_utterances
from recipes.core.errors import UserError, run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.core.progress import track
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.labels_section import LabelsSection
from recipes.schema.teacher_section import TeacherSection


def main() -> None:
    """Label the utterances with the teacher, from a finished label set or from transcripts; write the shards."""
    recipe, command = parse_stage_arguments("labels")
    if (section := recipe.labels) is None:
        raise UserError("labels: expected a labels section, found none; add `labels: {}` for its defaults")
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    is_main = processes.is_main_process
    with open_stage(recipe, "labels", command, main=is_main, wait=processes.wait_for_everyone) as stage:
        # 1. The utterances to label.
        utterances = read_utterances(recipe.root / "corpus", "train", "validation")
        # 2. Their labels: copied from a finished label set, made from transcripts, or predicted by the teacher.
        if section.source is not None:
            if is_main:
                copy_label_set(section.source, utterances, stage.folder)
        elif section.text != "teacher":
            if is_main:
                labels = reference_labels(
                    utterances, resolve_model_folder(recipe.teacher.model), language=recipe.teacher.language,
                    task=recipe.teacher.task, text=section.text, timestamps=section.timestamps,
                )  # fmt: skip
                write_part(stage.folder, 0, labels)
        else:
            if not shards_complete(stage.folder, len(utterances)):
                label_with_teacher(utterances, recipe.teacher, section, stage.folder, processes)
            processes.wait_for_everyone()
        # 3. Shards of many rows, and the figures for the report.
        if is_main:
            merge_parts(stage.folder, len(utterances), section.shard_rows)
            labels = read_labels(stage.folder)
            speed = take_speed(stage.folder, processes.num_processes)
            metrics = measure_label_set(labels, stage.folder, speed, processes.num_processes)
            stage.finish(counts=dict(count_labels(labels)), metrics=dict(metrics))


def label_with_teacher(
    utterances: Sequence[Utterance], teacher_section: TeacherSection, section: LabelsSection, folder: Path,
    processes: PartialState,
) -> None:  # fmt: skip
    """Divide the utterances among the processes and write each batch's labels to a part file in `folder`."""
    # 1. Load the teacher, one copy in each process.
    teacher = LabellingTeacher(resolve_model_folder(teacher_section.model), teacher_section, section, processes.device)
    check_fits_window(utterances, teacher.format.window_samples / SAMPLE_RATE)
    # 2. Form batches of similar length. The longest come first, so that a lack of memory shows at once.
    batch_size = None if section.batch_size == "auto" else section.batch_size
    batches = length_sorted(utterances, agreed_batch_size(folder, batch_size, teacher, processes))
    # 3. Of the batches that are not finished yet, take every Nth, where N is the number of processes.
    finished = finished_parts(folder)
    processes.wait_for_everyone()
    missing = [number for number in range(len(batches)) if number not in finished]
    mine = missing[processes.process_index :: processes.num_processes]
    # 4. Label them; the audio of the next batches is decoded meanwhile.
    numbers = track(mine, "labels", unit="batch", disable=not processes.is_main_process)
    started = time.perf_counter()
    for number, (batch, clips) in zip(numbers, read_ahead([batches[number] for number in mine]), strict=True):
        write_part(folder, number, label_batch(teacher, batch, clips), section.temperature)
        now = time.perf_counter()
        record_speed(folder, processes.process_index, sum(utterance.seconds for utterance in batch), now - started)
        started = now
    processes.wait_for_everyone()


if __name__ == "__main__":
    run_main(main)
