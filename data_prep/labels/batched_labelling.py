"""Label a corpus in batches: batch size, batches of similar length, reading ahead, and what to do out of memory.

The batch size is given in the recipe or estimated from free memory (`teacher_batch_size`). Utterances are sorted by
length, so that a batch wastes little on padding and the longest batch, which needs the most memory, comes first
(`length_sorted`). Other threads decode the audio of the next batches while the teacher labels one (`read_ahead`). If a
batch does not fit in memory after all, its two halves are labelled one after the other (`label_batch`).
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import PartialState

from data_prep.labels.label_store import Decoding, Label
from data_prep.labels.labelling_teacher import LabellingTeacher, TeacherOutput
from eval.audio.recordings import AudioError, read_audio
from eval.audio.utterances import Utterance
from eval.runtimes.process_memory import out_of_memory
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError
from recipes.core.logs import log

MEMORY_SHARE = 0.7
"""Fraction of free memory that a batch may fill. The remainder is for fragmentation, decoded audio and other
processes."""

MAX_BATCH_SIZE = 256
"""Largest batch. A larger one is not faster, because the arithmetic units are already fully used."""

READ_AHEAD = 2
"""Batches that are decoded from disk while the teacher labels another one."""


def agreed_batch_size(folder: Path, batch_size: int | None, teacher: LabellingTeacher, processes: PartialState) -> int:
    """Return the batch size that all processes use, and that a resumed run uses again.

    The first run stores it in plan.json: parts are numbered by batch, so a resumed run must form the same batches.

    Args:
        folder: Working folder of the label set.
        batch_size: Number of clips; None estimates it from free memory.
        teacher: The teacher on its device.
        processes: The processes that label together.
    """
    plan = folder / "plan.json"
    if processes.is_main_process and not plan.is_file():
        write_json(plan, {"batch_size": teacher_batch_size(teacher) if batch_size is None else batch_size})
    processes.wait_for_everyone()
    return int(json.loads(plan.read_text())["batch_size"])


def teacher_batch_size(teacher: LabellingTeacher) -> int:
    """Return the largest power of two, up to `MAX_BATCH_SIZE`, of clips that fit in free memory; at least 1."""
    available = _free_memory(teacher.device) * MEMORY_SHARE
    size = MAX_BATCH_SIZE
    while size > 1 and size * bytes_per_clip(teacher) > available:
        size //= 2
    return size


def bytes_per_clip(teacher: LabellingTeacher) -> float:
    """Estimate the peak memory that one clip needs.

    It is the larger of the encoder's activations and the decoder's caches and logits, plus the clip's samples and
    encoder states.
    """
    config, weight = teacher.model.config, teacher.model.dtype.itemsize
    width, positions = config.d_model, config.max_source_positions
    # The first convolution outputs two frames per position. A layer holds its input, the norm's output, queries, keys,
    # values, the attention's output and two activations of the MLP.
    encoder = positions * weight * max(4 * width, 6 * width + 2 * config.encoder_ffn_dim)
    caches = 2 * config.decoder_layers * width * weight * (positions + teacher.format.max_length)
    # Four float32 copies of the logits: as predicted, after suppression, and two for the top K and its tail.
    logits = 4 * 4 * config.vocab_size
    return float(max(encoder, caches + logits) + positions * width * weight + 4 * teacher.format.window_samples)


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def check_fits_window(utterances: Sequence[Utterance], window_seconds: float) -> None:
    """Raise UserError when an utterance is longer than the teacher's window."""
    longest = max(utterances, key=lambda utterance: utterance.seconds, default=None)
    if longest is not None and longest.seconds > window_seconds:
        raise UserError(
            f"labels: {longest.id} is {longest.seconds:.1f} s long, longer than the teacher's window of "
            f"{window_seconds:g} s; set corpus.max_seconds={window_seconds:g} to split such recordings at silences"
        )


def length_sorted(utterances: Sequence[Utterance], batch_size: int) -> list[list[Utterance]]:
    """Return batches of utterances of similar length, the longest first; equal lengths stay in corpus order."""
    ordered = sorted(utterances, key=lambda utterance: -utterance.seconds)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def read_ahead(
    batches: Sequence[Sequence[Utterance]],
) -> Iterator[tuple[Sequence[Utterance], list[np.ndarray | AudioError]]]:
    """Yield each batch with the samples [N] of its clips, while other threads decode the next ones.

    A clip that cannot be read is replaced by the AudioError that says why.
    """
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        queue: deque[tuple[Sequence[Utterance], Future[list[np.ndarray | AudioError]]]] = deque()
        waiting = iter(batches)
        for batch in islice(waiting, READ_AHEAD):
            queue.append((batch, pool.submit(_read_clips, batch)))
        while queue:
            batch, clips = queue.popleft()
            for following in islice(waiting, 1):
                queue.append((following, pool.submit(_read_clips, following)))
            yield batch, clips.result()


def _read_clips(batch: Sequence[Utterance]) -> list[np.ndarray | AudioError]:
    clips: list[np.ndarray | AudioError] = []
    for utterance in batch:
        try:
            clips.append(read_audio(utterance.audio))
        except AudioError as error:
            clips.append(error)
    return clips


def label_batch(
    teacher: LabellingTeacher, batch: Sequence[Utterance], clips: Sequence[np.ndarray | AudioError]
) -> list[Label]:
    """Label a batch; if it does not fit in memory, label its two halves one after the other.

    The label of a clip that could not be read holds the reason in `error`.
    """
    readable = {index: clip for index, clip in enumerate(clips) if isinstance(clip, np.ndarray)}
    outputs: list[TeacherOutput] = []
    try:
        if readable:
            ids, languages = [batch[index].id for index in readable], [batch[index].language for index in readable]
            outputs = teacher(list(readable.values()), ids, languages)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(batch) == 1:
            raise
    if len(outputs) < len(readable):  # out of memory; outside `except`, the failed attempt's tensors have been freed
        torch.cuda.empty_cache()
        half = len(batch) // 2
        log.warning(f"labels: out of memory with {len(batch)} clips, going on with {half}")
        return label_batch(teacher, batch[:half], clips[:half]) + label_batch(teacher, batch[half:], clips[half:])
    labels = [
        _empty_label(utterance, str(clip) if isinstance(clip, AudioError) else None)
        for utterance, clip in zip(batch, clips, strict=True)
    ]
    for index, output in zip(readable, outputs, strict=True):
        labels[index] = replace(
            labels[index], language=output.language, plain=output.plain, timed=output.timed,
            no_speech_prob=output.no_speech_prob,
        )  # fmt: skip
    return labels


def _empty_label(utterance: Utterance, error: str | None) -> Label:
    return Label(
        id=utterance.id, source=utterance.source, split=utterance.split, audio=utterance.audio,
        seconds=utterance.seconds, parts=utterance.parts, part_seconds=utterance.part_seconds,
        speaker=utterance.speaker, language=utterance.language, reference=utterance.text,
        plain=Decoding("", [], 0, 0.0, 0.0, ended=False), error=error,
    )  # fmt: skip
