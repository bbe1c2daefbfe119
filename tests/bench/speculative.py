"""Compare speculative decoding, with the student as draft, with the teacher alone, in PyTorch; true sizes are modelled.

    python -m tests.bench.speculative SPEECH --draft FOLDER [--teacher FOLDER]
        [--vocabulary FOLDER --shapes base small]                               one JSON line

Measured: AN4's test clips and evenly spaced test clips of the digits, sorted by length and batched as the eval stage
does. Each batch is decoded by both sides in turn; the side that goes first alternates. `ratio` is the time of the
teacher alone over the time with a draft, in total, with the encoder's pass and without; `quotient` is the median ratio
over the batches with its 95 % interval. `gaps` are the differences between the teacher's logits of the two tokens at
which the texts of a clip first differ. All of it runs in one thread and is measured in processor time, which leaves out
the time in which other programs run; `passed` has the ratio in elapsed time.

Modelled: a true-size teacher with random weights writes no text that a draft could predict, so the texts are those of
the measured pair. The pair transcribes once more with the cost of a draft step that the true size has, and the time of
every pass is taken from a pass over as many tokens at true size, where the draft has two decoder layers and shares the
encoder. The encoder and the cross-attention's keys and values are computed per window and not per batch, and measured
for one window. `long` scales all but the first passes to texts of 120 tokens, as in 30 s of speech. `alnum` is the
measured pair in the same model: its distance to `measured` shows how far the other rows can be trusted.

N batches, K calls (plain, with a draft, encoder), B batch, F mel bins, T mel frames, V vocabulary.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.models.cutting import cut_layers
from distill.models.random_weights import random_model
from eval.audio.recordings import read_audio
from eval.decoding.speculative import SpeculativeRuntime, open_speculative
from eval.decoding.text_batch import DraftStatistics
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from eval.scoring.resampling import median_interval
from recipes.core.errors import run_main
from recipes.core.progress import track
from recipes.core.whisper_shape import WHISPER_SHAPES
from tests.bench.compress import read_clips
from tests.bench.decoder_passes import PassCosts, Passes, measure_pass_costs, passes_without_draft, record_passes

LONG_TEXT_TOKENS = 120


def load_batches(transcriber: Transcriber, speech: Path, count: int, size: int) -> list[np.ndarray]:
    """Return log-mels [B, F, T] of test clips, longest first; clips that do not fill a last batch are left out."""
    an4, digits = (read_clips(speech / name / "test") for name in ("an4", "digits"))
    chosen = np.linspace(0, len(digits) - 1, min(len(digits), max(0, count - len(an4)))).round().astype(int)
    samples = sorted((read_audio(file) for file, _ in [*an4[:count], *(digits[index] for index in chosen)]), key=len)
    ordered = samples[::-1]
    return [transcriber.features(ordered[start : start + size]) for start in range(0, len(ordered) - size + 1, size)]


class TeacherAndDraft:
    """A teacher that decodes with a draft (`speculative`), and the same teacher alone (`plain`)."""

    def __init__(self, teacher: Path, draft: Path):
        self.runtime = open_speculative(teacher, draft, threads=1)
        self.speculative = Transcriber(self.runtime, teacher, "en")
        self.plain = Transcriber.with_runtime(self.speculative, TorchRuntime(self.runtime.model))

    def measure(self, mels: Sequence[np.ndarray]) -> tuple[dict[str, Any], list[int]]:
        """Decode all batches with both sides in turn.

        Return the row of figures (equal texts, acceptance, times), and the tokens of the longest text of each batch.
        """
        rows, longest, gaps = list[list[np.ndarray]](), list[int](), list[float]()
        calls = (self.plain.decode, self.speculative.decode, self.plain.runtime.encode)
        for call in calls:
            call(mels[0])
        self.runtime.statistics = DraftStatistics()
        for number, mel_BFT in enumerate(track(mels, f"batch {len(mels[0])}", unit="batch")):
            order = (0, 1, 2) if number % 2 == 0 else (1, 0, 2)
            results = {index: time_call(calls[index], mel_BFT) for index in order}
            rows.append([results[index][1] for index in range(3)])
            plain, speculative = results[0][0], results[1][0]
            longest.append(max(len(transcript.tokens) for transcript in plain))
            for mel_FT, expected, found in zip(mel_BFT, plain, speculative, strict=True):
                if expected.tokens != found.tokens:
                    gaps.append(self._logit_gap(mel_FT, expected.tokens, found.tokens))
        times_NK2, count = np.array(rows), sum(map(len, mels))
        cpu_NK, (cpu_K, elapsed_K) = times_NK2[..., 0], times_NK2.sum(axis=0).T
        return {
            "clips": count, "equal": count - len(gaps), "gaps": gaps,
            "seconds": round_values(dict(zip(("plain", "draft", "encoder"), cpu_K, strict=True))),
            "ratio": time_ratios(*cpu_K), "quotient": round_values(vars(median_interval(cpu_NK[:, 0] / cpu_NK[:, 1]))),
            "passed": time_ratios(*elapsed_K), **self.runtime.statistics.summary,
        }, longest  # fmt: skip

    def passes_at_step_cost(self, mels: Sequence[np.ndarray], step_cost: float) -> tuple[list[Passes], DraftStatistics]:
        """Decode all batches as if a draft step cost this share of a teacher's step.

        Return the passes on each batch, and the statistics of the drafts.
        """
        runtime, batches = self.runtime, list[Passes]()
        original_cost, runtime.step_cost, runtime.statistics = runtime.step_cost, step_cost, DraftStatistics()
        for mel_BFT in track(mels, f"passes at {step_cost:.2f}", unit="batch"):
            with record_passes(teacher=runtime.model, draft=runtime.draft) as passes:
                self.speculative.decode(mel_BFT)
            batches.append(passes)
        runtime.step_cost = original_cost
        return batches, runtime.statistics

    @torch.inference_mode()
    def _logit_gap(self, mel_FT: np.ndarray, expected: list[int], found: list[int]) -> float:
        """Return the difference between the teacher's logits of the first two tokens that differ."""
        position = next(index for index, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b)
        state, prompt = self.runtime.encode(mel_FT[None]), self.plain.format.prompt
        logits_V = self.runtime.forced_logits(state, prompt, expected[: position + 1])[position][0]
        return abs(float(logits_V[expected[position]] - logits_V[found[position]]))


def time_call(call: Callable[[np.ndarray], Any], mel_BFT: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the result of the call, and its processor time and elapsed time [2], s."""
    started = time.process_time(), time.perf_counter()
    result = call(mel_BFT)
    return result, np.array([time.process_time(), time.perf_counter()]) - started


def random_pair(name: str, vocabulary: Path) -> SpeculativeRuntime:
    """Return a teacher with random weights, and its first and last decoder layer as draft."""
    with tempfile.TemporaryDirectory() as folder:
        random_model(WHISPER_SHAPES[name], vocabulary, Path(folder))
        teacher = load_model(Path(folder))
    layers = list(range(teacher.config.encoder_layers))
    return SpeculativeRuntime(teacher, cut_layers(teacher, layers, [0, teacher.config.decoder_layers - 1]))


def model_row(
    costs: PassCosts, clips: int, longest: Sequence[int], passes: list[Passes], statistics: DraftStatistics
) -> dict[str, Any]:
    """Return the modelled ratios over all batches; `longest` are the tokens of the longest text of each batch."""
    plain, encoder = [passes_without_draft(tokens) for tokens in longest], costs.encoder * len(longest)
    factor = LONG_TEXT_TOKENS * clips / statistics.written
    ratio, long = (
        time_ratios(costs.total_ms(plain, scale) + encoder, costs.total_ms(passes, scale) + encoder, encoder)
        for scale in (1.0, factor)
    )
    return {
        "ratio": ratio, "long": long, **statistics.summary,
        "encoder_ms": round(costs.encoder, 1), "keys_ms": round_values(costs.keys),
        "pass_ms": {decoder: round_values(times) for decoder, times in costs.passes.items()},
    }  # fmt: skip


def time_ratios(plain: float, draft: float, encoder: float) -> dict[str, float]:
    """Return the time of the teacher alone over the time with a draft, with the encoder's time in both and without."""
    return round_values({"whole": plain / draft, "decoder": (plain - encoder) / (draft - encoder)})


def round_values(values: Mapping[Any, float]) -> dict[Any, float]:
    """Round to three decimal places."""
    return {key: round(value, 3) for key, value in values.items()}


def main() -> None:
    """Measure the trained pair, then model its passes at other sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--teacher", type=Path, default=Path("recipes/demo/teacher"))
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--vocabulary", type=Path, help="folder with a Whisper tokenizer, for the true shapes")
    parser.add_argument("--shapes", nargs="*", default=[], choices=WHISPER_SHAPES)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--clips", type=int, default=208)
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each pass")
    args = parser.parse_args()
    pair = TeacherAndDraft(args.teacher, args.draft)
    mels = {size: load_batches(pair.plain, args.speech, args.clips, size) for size in args.batches}
    measured = {size: pair.measure(mels[size]) for size in args.batches}
    rows = dict[str, Any]()
    for name in ("alnum", *args.shapes):
        runtime = pair.runtime if name == "alnum" else random_pair(name, args.vocabulary)
        costs = measure_pass_costs(runtime, args.batches, args.runs, name)
        rows[name] = {"step_cost": round(runtime.step_cost, 3)}
        for size, (_, longest) in measured.items():
            passes, statistics = pair.passes_at_step_cost(mels[size], runtime.step_cost)
            rows[name][size] = model_row(costs[size], size * len(mels[size]), longest, passes, statistics)
    print(json.dumps({
        "bench": "speculative", "teacher": str(args.teacher), "draft": str(args.draft),
        "measured": {size: row for size, (row, _) in measured.items()}, "modelled": rows, "runs": args.runs,
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
