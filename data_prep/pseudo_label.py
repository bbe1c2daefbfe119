"""Stage `labels`: the teacher transcribes the train and validation audio.

accelerate launch data_prep/pseudo_label.py recipes/demo/recipe.yaml
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from data_prep.label_store import Label, finished_parts, merge_parts, write_part
from eval.audio import read_audio
from eval.metrics import Normalize, error_rate, normalizer
from eval.runtimes.torch import TorchRuntime, load_model
from eval.runtimes.transcriber import Transcriber, Transcript
from eval.utterances import Utterance, read_utterances
from recipes.errors import UserError, run_main
from recipes.models import model_folder
from recipes.stage import arguments, open_stage


def main() -> None:
    """Sort by length, divide among the processes, transcribe what is missing, merge."""
    recipe, command = arguments("labels")
    if (section := recipe.labels) is None:
        raise UserError("labels: the recipe has no labels section; add `labels: {}` for its defaults")
    processes = PartialState()
    main_process = processes.is_main_process
    with open_stage(recipe, "labels", command, main=main_process, wait=processes.wait_for_everyone) as work:
        # 1. Batches of like length; the longest first, so that memory trouble shows at once.
        utterances = read_utterances(recipe.root / "corpus", "train", "validation")
        batches = length_sorted(utterances, section.batch_size)
        done = finished_parts(work.folder)
        # 2. The teacher, one copy a process; of what is missing, process i takes every Nth batch.
        folder = model_folder(recipe.teacher.model)
        runtime = TorchRuntime(load_model(folder), processes.device)
        teacher = Transcriber(runtime, folder, recipe.teacher.language, recipe.teacher.task)
        label = Labeller(teacher, normalizer(section.normalizer, folder), section.max_wer)
        mine = list(range(len(batches)))[processes.process_index :: processes.num_processes]
        for number in tqdm(mine, "labels", unit="batch", disable=not main_process):
            if number not in done:
                write_part(work.folder, number, label(batches[number]))
        processes.wait_for_everyone()
        # 3. Shards in corpus order.
        if main_process:
            labels = merge_parts(work.folder, [item.id for item in utterances], section.shard_rows)
            kept = sum(label.kept for label in labels)
            work.finish(counts={"utterances": len(labels), "kept": kept}, metrics=summary(labels, label.normalize))


def length_sorted(utterances: Sequence[Utterance], batch_size: int) -> list[list[Utterance]]:
    """Batches of utterances of like length, longest first; ties in corpus order."""
    ordered = sorted(utterances, key=lambda item: -item.seconds)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


@dataclass(frozen=True)
class Labeller:
    """Utterances to labels: the teacher's text, its tokens, and whether training keeps it."""

    teacher: Transcriber
    normalize: Normalize
    max_wer: float | None

    def __call__(self, batch: Sequence[Utterance]) -> list[Label]:
        """Transcribe one batch."""
        clips = [read_audio(Path(item.audio)) for item in batch]
        return [self._label(*pair) for pair in zip(batch, self.teacher.transcribe(clips, scores=True), strict=True)]

    def _label(self, item: Utterance, transcript: Transcript) -> Label:
        prompt = self.teacher.format.prompt
        wer = self._wer(item.text, transcript.text)
        reason = None
        if not transcript.text:
            reason = "empty label"
        elif transcript.tokens[-1] != self.teacher.format.end:
            reason = "no end of text"
        elif self.max_wer is not None and wer is not None and wer > self.max_wer:
            reason = f"WER above {self.max_wer}"
        return Label(
            id=item.id, split=item.split, audio=item.audio, seconds=item.seconds, reference=item.text,
            text=transcript.text, tokens=prompt + transcript.tokens, prompt_length=len(prompt),
            mean_logprob=transcript.mean_logprob, wer=wer, kept=reason is None, reason=reason,
        )  # fmt: skip

    def _wer(self, reference: str | None, text: str) -> float | None:
        normal = self.normalize(reference) if reference else ""
        return error_rate([normal], [self.normalize(text)]) / 100 if normal else None


def summary(labels: Sequence[Label], normalize: Normalize) -> dict[str, Any]:
    """What the report says of the labels."""
    pairs = [(normalize(label.reference), normalize(label.text)) for label in labels if label.reference]
    return {
        "audio_hours": round(sum(label.seconds for label in labels) / 3600, 4),
        "wer_to_reference": error_rate(*zip(*pairs, strict=True)) if pairs else None,
        "dropped": dict(Counter(label.reason for label in labels if label.reason)),
    }


if __name__ == "__main__":
    run_main(main)
