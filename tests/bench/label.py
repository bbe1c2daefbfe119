"""Compare the labelling speed of this project with that of a plain loop, on real audio with Whisper's 30 s window.

    python -m tests.bench.label SPEECH VOCABULARY        one JSON line

The plain loop does what a script does: it passes batches in corpus order through the feature extractor and `generate`.
Both sides use the same whisper-tiny with random weights, the same batch size, and the same number of processes and
threads. Hooks in the model itself, invisible to both sides, end each text after TOKENS_PER_SECOND tokens per second of
sound, so that the texts are as long as a real model's.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from data_prep.audio.segmentation import pack_utterances
from data_prep.labels.batched_labelling import label_batch, length_sorted, read_ahead
from data_prep.labels.labelling_teacher import LabellingTeacher
from data_prep.sources.discovery import find_recordings
from distill.models.random_weights import random_model
from eval.audio.recordings import AudioReference, duration_of, read_audio
from eval.audio.utterances import Utterance
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.schema.corpus_section import AudioSource
from recipes.schema.labels_section import LabelsSection
from recipes.schema.teacher_section import TeacherSection

TOKENS_PER_SECOND = 3.5
"""Rate of English speech in Whisper's vocabulary."""
BATCH_SIZE = 16


def limit_text_length(model: WhisperForConditionalGeneration) -> None:
    """Make a random model end its texts in proportion to the sound in its window."""
    ended: dict[str, torch.Tensor] = {}
    decoder, end = model.model.decoder, int(model.generation_config.eos_token_id)

    def after_encoder(_module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        mel_BFT = inputs[0] if inputs else kwargs["input_features"]
        loud_BT = mel_BFT.amax(dim=1) > mel_BFT.amin(dim=(1, 2))[:, None] + 1e-3
        # The encoder states carry the length to the decoder, whichever rows of the batch are still being decoded.
        output.last_hidden_state[:, 0, 0] = (loud_BT.sum(dim=1) * TOKENS_PER_SECOND / 100).round()

    def before_decoder(_module: Any, _inputs: Any, kwargs: dict[str, Any]) -> None:
        past = kwargs["past_key_values"]
        written = kwargs["input_ids"].shape[1] + (past.get_seq_length() if past is not None else 0) - 4
        ended["rows"] = kwargs["encoder_hidden_states"][:, 0, 0] <= written

    def after_head(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        logits[..., end] = torch.where(ended["rows"], 1e4, -1e4)[:, None]
        return logits

    model.model.encoder.register_forward_hook(after_encoder, with_kwargs=True)
    decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)
    model.proj_out.register_forward_hook(after_head)


def label_with_plain_loop(model: WhisperForConditionalGeneration, folder: Path, utterances: list[Utterance]) -> int:
    """Label batches in corpus order, reading and decoding in sequence; return the number of tokens written."""
    extract = WhisperFeatureExtractor.from_pretrained(folder)
    written = 0
    for start in range(0, len(utterances), BATCH_SIZE):
        clips = [read_audio(item.audio) for item in utterances[start : start + BATCH_SIZE]]
        features = extract(clips, sampling_rate=16_000, return_tensors="pt").input_features
        tokens = model.generate(features, language="en", task="transcribe", return_timestamps=False)
        written += int((tokens != model.generation_config.eos_token_id).sum())
    return written


def label_with_project(teacher: LabellingTeacher, utterances: list[Utterance]) -> int:
    """Label as the labels stage does; return the number of tokens written."""
    batches = length_sorted(utterances, BATCH_SIZE)
    labels = [label for batch, clips in read_ahead(batches) for label in label_batch(teacher, batch, clips)]
    return sum(len(label.plain.tokens) - label.plain.prompt_length - 1 for label in labels)


def time_call(label: Callable[[], int]) -> tuple[float, int]:
    """Return the elapsed seconds and the number of tokens written."""
    started = time.perf_counter()
    tokens = label()
    return time.perf_counter() - started, tokens


def read_utterances(speech: Path, sets: dict[str, int]) -> list[Utterance]:
    """Return the first utterances of each test set, in corpus order; `sets` gives their number by folder name."""
    utterances = []
    for name, count in sets.items():
        source = AudioSource(audiofolder=speech / name)
        rows = [row for row in find_recordings(source) if row.split == "test"]
        for row in rows[:count]:
            seconds = duration_of(AudioReference.parse(row.audio))
            utterances.append(Utterance(
                id=row.name, source=name, split="train", audio=[row.audio], parts=[row.name], text=row.text,
                speaker=row.speaker, language=None, seconds=seconds, part_seconds=[seconds], sha256="",
            ))  # fmt: skip
    return utterances


def main() -> None:
    """Warm both sides up on four utterances, then label the whole corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--sets", type=json.loads, default={"an4": 64, "librispeech-mini": 32})
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    utterances = read_utterances(args.speech, args.sets)
    audio = sum(item.seconds for item in utterances)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_model(WHISPER_SHAPES["tiny"], args.vocabulary, folder)
        model = load_model(folder)
        teacher = LabellingTeacher(
            folder, TeacherSection(model=str(folder)), LabelsSection(fallback=[]), torch.device("cpu")
        )
        for same_weights in (model, teacher.model):
            limit_text_length(same_weights)
        packed = pack_utterances(utterances, 30.0)
        label_with_plain_loop(model, folder, utterances[:4])
        label_with_project(teacher, utterances[:4])
        plain_s, plain_tokens = time_call(lambda: label_with_plain_loop(model, folder, utterances))
        unpacked_s, unpacked_tokens = time_call(lambda: label_with_project(teacher, utterances))
        packed_s, packed_tokens = time_call(lambda: label_with_project(teacher, packed))
    print(json.dumps({
        "bench": "label", "ratio": round(plain_s / packed_s, 2), "ratio_unpacked": round(plain_s / unpacked_s, 2),
        "plain_audio_s_per_s": round(audio / plain_s, 2), "engine_audio_s_per_s": round(audio / packed_s, 2),
        "unpacked_audio_s_per_s": round(audio / unpacked_s, 2), "utterances": len(utterances), "windows": len(packed),
        "audio_s": round(audio, 1), "median_s": round(float(np.median([item.seconds for item in utterances])), 2),
        "tokens": [plain_tokens, unpacked_tokens, packed_tokens], "batch_size": BATCH_SIZE,
        "threads": torch.get_num_threads(), "shape": "whisper-tiny, 30 s window, random weights",
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
