"""A student as its teacher's draft beside the teacher alone, in PyTorch; at true sizes modelled.

    python -m tests.bench.speculative SPEECH --draft FOLDER [--teacher FOLDER]
        [--vocabulary FOLDER --shapes base small]                               one JSON line

Measured: AN4's test clips and evenly spaced ones of the digits', sorted by length and batched as `eval` does. Each
batch goes to both in turn, which first alternating. `ratio` is the plain teacher's time over that with a draft, in
total, with the encoder's pass and without, and `quotient` the median over batches with its 95 % interval. `gaps` are
how far apart the teacher's logits of the two tokens are where texts first differ. All in one thread and by processor
time, in which other programs' turns are not; `passed` has the ratio of the time that passed.

Modelled: a true-size teacher with random weights says nothing to agree with, so the texts are the real pair's. It
transcribes once more with the true sizes' price of a draft step, and every pass that it makes is charged what a pass
over as many tokens takes at true size, where two decoder layers draft and both have one encoder. What goes by window
and not by batch, the encoder and the cross-attention's keys and values, is measured for one. `long` has all but the
first passes stretched to 120 tokens a clip, as 30 s of speech hold. `alnum` is the real pair by the same model: beside
`measured` it tells how far to trust the others.

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
from tqdm import tqdm

from distill.models.cutting import cut_layers
from distill.models.random_weights import random_model
from eval.audio.recordings import read_audio
from eval.decoding.speculative import Acceptance, SpeculativeRuntime, open_speculative
from eval.decoding.transcriber import Transcriber
from eval.latency.paired_timing import median_interval
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.whisper_shape import WHISPER_SHAPES
from tests.bench.compress import clips
from tests.bench.passes import Costs, Passes, alone, costs, watched

LONG = 120


def batches(transcriber: Transcriber, speech: Path, count: int, size: int) -> list[np.ndarray]:
    """Log-mels [B, F, T] of test clips, longest first; a remainder below the batch size is left out."""
    an4, digits = (clips(speech / name / "test") for name in ("an4", "digits"))
    rest = np.linspace(0, len(digits) - 1, min(len(digits), max(0, count - len(an4)))).round().astype(int)
    samples = sorted((read_audio(file) for file, _ in [*an4[:count], *(digits[index] for index in rest)]), key=len)
    ordered = samples[::-1]
    return [transcriber.features(ordered[at : at + size]) for at in range(0, len(ordered) - size + 1, size)]


class Pair:
    """A teacher and its draft, and the teacher alone."""

    def __init__(self, teacher: Path, draft: Path):
        self.runtime = open_speculative(teacher, draft, threads=1)
        self.helped = Transcriber(self.runtime, teacher, "en")
        self.plain = Transcriber.with_runtime(self.helped, TorchRuntime(self.runtime.model))

    def measured(self, mels: Sequence[np.ndarray]) -> tuple[dict[str, Any], list[int]]:
        """Equal texts, acceptance and times in turn; of each batch the tokens of its longest text."""
        rows, longest, gaps = list[list[np.ndarray]](), list[int](), list[float]()
        calls = (self.plain.decode, self.helped.decode, self.plain.runtime.encode)
        for call in calls:
            call(mels[0])
        self.runtime.acceptance = Acceptance()
        for number, mel_BFT in enumerate(tqdm(mels, f"batch {len(mels[0])}")):
            made = {place: timed(calls[place], mel_BFT) for place in ((0, 1, 2) if number % 2 == 0 else (1, 0, 2))}
            rows.append([made[place][1] for place in range(3)])
            ours, theirs = made[0][0], made[1][0]
            longest.append(max(len(one.tokens) for one in ours))
            for mel_FT, one, other in zip(mel_BFT, ours, theirs, strict=True):
                if one.tokens != other.tokens:
                    gaps.append(self._gap(mel_FT, one.tokens, other.tokens))
        spent_NK2, count = np.array(rows), sum(map(len, mels))
        cpu_NK, (cpu_K, passed_K) = spent_NK2[..., 0], spent_NK2.sum(axis=0).T
        return {
            "clips": count, "equal": count - len(gaps), "gaps": gaps,
            "seconds": rounded(dict(zip(("plain", "draft", "encoder"), cpu_K, strict=True))),
            "ratio": ratios(*cpu_K), "quotient": rounded(median_interval(cpu_NK[:, 0] / cpu_NK[:, 1])),
            "passed": ratios(*passed_K), **self.runtime.acceptance.figures,
        }, longest  # fmt: skip

    def drafted(self, mels: Sequence[np.ndarray], step_cost: float) -> tuple[list[Passes], Acceptance]:
        """The passes on each batch if a draft step cost this share of the teacher's, and what was kept."""
        runtime, found = self.runtime, list[Passes]()
        own, runtime.step_cost, runtime.acceptance = runtime.step_cost, step_cost, Acceptance()
        for mel_BFT in tqdm(mels, f"passes at {step_cost:.2f}"):
            with watched(teacher=runtime.model, draft=runtime.draft) as passes:
                self.helped.decode(mel_BFT)
            found.append(passes)
        runtime.step_cost = own
        return found, runtime.acceptance

    @torch.inference_mode()
    def _gap(self, mel_FT: np.ndarray, one: list[int], other: list[int]) -> float:
        """Between the two tokens where the texts part."""
        place = next(index for index, (ours, theirs) in enumerate(zip(one, other, strict=False)) if ours != theirs)
        state, prompt = self.runtime.encode(mel_FT[None]), self.plain.format.prompt
        logits_V = self.runtime.along(state, prompt, one[: place + 1])[place][0]
        return abs(float(logits_V[one[place]] - logits_V[other[place]]))


def timed(call: Callable[[np.ndarray], Any], mel_BFT: np.ndarray) -> tuple[Any, np.ndarray]:
    """What it gives, and the processor time and the time that passed [2], s."""
    started = time.process_time(), time.perf_counter()
    given = call(mel_BFT)
    return given, np.array([time.process_time(), time.perf_counter()]) - started


def true_size(name: str, vocabulary: Path) -> SpeculativeRuntime:
    """A teacher of random weights, and its first and last decoder layer as draft."""
    with tempfile.TemporaryDirectory() as place:
        random_model(WHISPER_SHAPES[name], vocabulary, Path(place))
        teacher = load_model(Path(place))
    layers = list(range(teacher.config.encoder_layers))
    return SpeculativeRuntime(teacher, cut_layers(teacher, layers, [0, teacher.config.decoder_layers - 1]))


def modelled(priced: Costs, clips: int, longest: Sequence[int], passes: list[Passes], kept: Acceptance) -> Any:
    """Ratios of the plain teacher's time to that with a draft, over all batches."""
    plain, encoder = [alone(tokens) for tokens in longest], priced.encoder * len(longest)
    stretch = LONG * clips / kept.written
    ratio, long = (
        ratios(priced(plain, times) + encoder, priced(passes, times) + encoder, encoder) for times in (1.0, stretch)
    )
    return {
        "ratio": ratio, "long": long, **kept.figures,
        "encoder_ms": round(priced.encoder, 1), "keys_ms": rounded(priced.keys),
        "pass_ms": {who: rounded(table) for who, table in priced.passes.items()},
    }  # fmt: skip


def ratios(plain: float, draft: float, encoder: float) -> dict[str, float]:
    """Of the plain teacher's time to that with a draft: with the encoder's in both, and without."""
    return rounded({"whole": plain / draft, "decoder": (plain - encoder) / (draft - encoder)})


def rounded(values: Mapping[Any, float]) -> dict[Any, float]:
    """To three places."""
    return {key: round(value, 3) for key, value in values.items()}


def main() -> None:
    """Measure the real pair, then price its passes at other sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--teacher", type=Path, default=Path("recipes/demo/teacher"))
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--vocabulary", type=Path, help="of the true shapes")
    parser.add_argument("--shapes", nargs="*", default=[], choices=WHISPER_SHAPES)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--clips", type=int, default=208)
    parser.add_argument("--runs", type=int, default=7, help="of each pass")
    given = parser.parse_args()
    pair = Pair(given.teacher, given.draft)
    mels = {size: batches(pair.plain, given.speech, given.clips, size) for size in given.batches}
    found = {size: pair.measured(mels[size]) for size in given.batches}
    rows = dict[str, Any]()
    for name in ("alnum", *given.shapes):
        runtime = pair.runtime if name == "alnum" else true_size(name, given.vocabulary)
        priced, rows[name] = costs(runtime, given.batches, given.runs, name), {"step_cost": round(runtime.step_cost, 3)}
        for size, (_, longest) in found.items():
            made = pair.drafted(mels[size], runtime.step_cost)
            rows[name][size] = modelled(priced[size], size * len(mels[size]), longest, *made)
    print(json.dumps({
        "bench": "speculative", "teacher": str(given.teacher), "draft": str(given.draft),
        "measured": {size: row for size, (row, _) in found.items()}, "modelled": rows, "runs": given.runs,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
