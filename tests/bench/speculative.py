"""A student as draft for its teacher: the same text, and how much sooner.

    python -m tests.bench.speculative SPEECH VOCABULARY --student runs/alnum-real/train/model      one JSON line

Plain and drafted decoding of real clips take turns on the same encoder states. At true size weights are random and
accept nothing, so there the ratio is a *model of the cost*: passes of teacher and draft as counted on the real clips,
each at the price of such a pass as measured there. `pays` is the largest ratio over the ways of drafting.

B batch, S encoder positions, D width.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from distill.shapes import random_model
from distill.student import cut
from eval.audio import read_audio
from eval.audiofolder import read_metadata
from eval.runtimes.torch import TorchRuntime, TorchState, load_model
from eval.runtimes.transcriber import Transcriber
from eval.slots import SlotDecoder
from eval.speculative import Acceptance, SpeculativeRuntime, open_speculative
from recipes.shapes import SHAPES
from tests.conftest import TEACHER

PLAIN, ADAPTIVE = "plain", "adaptive"
SETS = (("an4", 130), ("digits", 70))
CACHE = 40
"""Tokens in the cache where a pass is timed: about the middle of a 30 s text."""


class Heard(TorchRuntime):
    """A teacher whose clips were encoded before."""

    state: TorchState

    def encode(self, mel_BFT: np.ndarray) -> TorchState:  # noqa: ARG002
        return self.state


class Bench:
    """The ways of decoding over one pair of models, with what they cost."""

    def __init__(self, runtime: SpeculativeRuntime, teacher: Path, lengths: Sequence[int]):
        self.runtime, self.lengths = runtime, lengths
        self.base = Transcriber(runtime, teacher, "en")
        self.plain = Transcriber.with_runtime(self.base, Heard(runtime.model))
        self.passes: Counter[int] = Counter()
        runtime.model.model.decoder.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes["teacher"] += 1

    def decode(self, way: str, state: TorchState) -> list[list[int]]:
        """Tokens of each row."""
        if way == PLAIN:
            self.plain.runtime.state = state
            return [said.tokens for said in self.plain.decode(np.zeros((len(state.encoder_BSD), 1, 1), np.float32))]
        form = self.base.format
        self.runtime.draft_tokens = None if way == ADAPTIVE else int(way)
        rows = self.runtime.generate(
            state, form.prompt, form.max_length - len(form.prompt), end=form.end, suppress=form.suppress,
            suppress_first=form.suppress_first,
        )  # fmt: skip
        return [tokens for tokens, _ in rows]

    def run(self, clips: Sequence[np.ndarray], batch: int) -> dict[str, Any]:
        """Every way on every batch, in an order that turns."""
        ways = [PLAIN, ADAPTIVE, *map(str, self.lengths)]
        spent, passes = dict.fromkeys(["encoder", *ways], 0.0), dict.fromkeys(ways, 0)
        texts: dict[str, list[list[int]]] = {way: [] for way in ways}
        kept = {way: Acceptance() for way in ways}
        for turn, start in enumerate(tqdm(range(0, len(clips), batch), f"batch {batch}")):
            mel_BFT = self.base.features(clips[start : start + batch])
            spent["encoder"] -= time.perf_counter()
            state = self.runtime.encode(mel_BFT)
            spent["encoder"] += time.perf_counter()
            for index in range(len(ways)):
                way = ways[(turn + index) % len(ways)]
                self.runtime.acceptance, before = kept[way], self.passes["teacher"]
                spent[way] -= time.perf_counter()
                texts[way] += self.decode(way, state)
                spent[way] += time.perf_counter()
                passes[way] += self.passes["teacher"] - before
        return {
            "encoder_s": round(spent["encoder"], 2), "plain_s": round(spent[PLAIN], 2), "plain_passes": passes[PLAIN],
            "drafted": {
                way: kept[way].figures | {
                    "equal_texts": sum(ours == own for ours, own in zip(texts[way], texts[PLAIN], strict=True)),
                    "batch_passes": passes[way],
                    "decoding_ratio": round(spent[PLAIN] / spent[way], 3),
                    "whole_ratio": round((spent["encoder"] + spent[PLAIN]) / (spent["encoder"] + spent[way]), 3),
                }
                for way in ways[1:]
            },
        }  # fmt: skip


def pass_ms(model: WhisperForConditionalGeneration, batch: int, tokens: Sequence[int], runs: int) -> dict[int, float]:
    """Median time of a decoder's pass over so many tokens a row, by that number, all in turns."""
    config = model.config
    encoder_BSD = torch.randn(batch, config.max_source_positions, config.d_model)
    spent: dict[int, list[float]] = {count: [] for count in tokens}
    with torch.inference_mode():
        decoder = SlotDecoder(model, encoder_BSD, CACHE + max(tokens))
        decoder(torch.zeros(batch, CACHE, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64))
        for run in range(-1, runs):
            for count, times in spent.items():
                started = time.perf_counter()
                decoder(torch.zeros(batch, count, dtype=torch.int64), torch.full((batch,), CACHE))
                if run >= 0:
                    times.append(1e3 * (time.perf_counter() - started))
    return {count: float(np.median(times)) for count, times in spent.items()}


def modelled(
    teacher: WhisperForConditionalGeneration, measured: dict[int, dict[str, Any]], lengths: Sequence[int], runs: int
) -> dict[str, Any]:
    """Ratio of decoding at this size, by batch and draft length, had it the acceptance of the real pair."""
    layers = teacher.config.encoder_layers
    draft = cut(teacher, list(range(layers)), [0, teacher.config.decoder_layers - 1])
    rows = {}
    for batch, found in tqdm(measured.items(), "true size"):
        of_teacher = pass_ms(teacher, batch, [1, *(length + 1 for length in lengths)], runs)
        of_draft = pass_ms(draft, batch, [1, 2], runs)
        ratios = {}
        for length in lengths:
            round_ms = of_teacher[length + 1] + of_draft[2] + (length - 1) * of_draft[1]
            passes = found["drafted"][str(length)]["batch_passes"]
            ratios[length] = round(found["plain_passes"] * of_teacher[1] / (passes * round_ms), 3)
        rows[batch] = {
            "teacher_ms": {count: round(value, 2) for count, value in of_teacher.items()},
            "draft_ms": {count: round(value, 2) for count, value in of_draft.items()},
            "modelled_decoding_ratio": ratios, "pays": max(ratios.values()),
        }  # fmt: skip
    return rows


def main() -> None:
    """Real clips, then the price of passes at true size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, default=TEACHER)
    parser.add_argument("--clips", type=float, default=1.0, help="share of the 200")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--lengths", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--shapes", nargs="*", default=["small"], choices=SHAPES)
    parser.add_argument("--runs", type=int, default=10, help="timed passes at true size")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    runtime = open_speculative(given.teacher, given.student, given.threads)
    clips = []
    for name, count in SETS:
        rows = sorted(file for file, _ in read_metadata(given.speech / name / "test", "bench:"))
        chosen = rows[:: len(rows) // count][: round(count * given.clips)]
        clips += [read_audio(given.speech / name / "test" / file) for file in chosen]
    bench = Bench(runtime, given.teacher, given.lengths)
    measured = {batch: bench.run(clips, batch) for batch in given.batches}
    sizes: dict[str, Any] = {}
    for name in given.shapes:
        with tempfile.TemporaryDirectory() as place:
            random_model(SHAPES[name], given.vocabulary, Path(place))
            sizes[name] = modelled(load_model(Path(place)), measured, given.lengths, given.runs)
    print(json.dumps({
        "bench": "speculative", "clips": len(clips), "threads": given.threads,
        "shared_encoder": runtime.shares_encoder, "step_cost": round(runtime.step_cost, 3),
        "measured": measured, "true_size_model": sizes,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
