"""The noise floor of the latency harness, and whether a slow-down of 5 % rises above it.

    python -m tests.bench.noise_floor RECIPE [section.key=value ...]        one JSON line

One export of a finished run is measured ten times by the benchmark's own processes, in turn with the same export made
5 % slower: after each clip it computes on for a twentieth of the clip's time. Spread is the largest median over the
least.
"""

import json
import sys
import time
from itertools import combinations
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.benchmark import Bench, chosen
from eval.latency import measure, without_sklearn
from eval.runtimes.transcriber import Transcriber
from eval.systems import systems
from recipes.devices import setting
from recipes.errors import run_main
from recipes.stage import arguments

TIMES, SLOWER = 10, 0.05
MODULES = ("eval.latency", "tests.bench.noise_floor")
"""The measuring process, as it is and slowed down (this module, reading a task)."""


def main() -> None:
    """Measure both in turn, compare their medians."""
    recipe, _ = arguments("benchmark")
    assert recipe.benchmark is not None
    (system,) = [system for system in systems(recipe) if system.name == "onnx-int8"]
    bench = Bench(recipe, chosen(recipe, recipe.benchmark.clips))
    found = {module: list[float]() for module in MODULES}
    for _ in tqdm(range(TIMES), "measuring"):
        for module in MODULES:
            row = bench.start(module, system, setting(recipe), {"details": False})
            found[module].append(row["clip_ms"]["p50"])
    plain, slow = (np.array(found[module]) for module in MODULES)
    print(json.dumps({
        "bench": "noise_floor", "artefact": system.name, "times": TIMES, "clip_p50_ms": [round(x, 2) for x in plain],
        "spread": round(float(plain.max() / plain.min()), 3),
        "coefficient_of_variation": round(float(plain.std(ddof=1) / plain.mean()), 4),
        "slowed_by": SLOWER, "slowed_ratio": round(float(np.median(slow) / np.median(plain)), 3),
        "slowed_pairs_slower": int((slow > plain).sum()), "p": round(rank_sum(plain, slow), 6),
    }))  # fmt: skip


def rank_sum(plain: np.ndarray, slow: np.ndarray) -> float:
    """One-sided p value of `slow` being no slower: the exact rank-sum test over all ways to split the ranks."""
    ranks = np.concatenate([plain, slow]).argsort().argsort()
    sums = np.array([sum(chosen) for chosen in combinations(range(len(ranks)), len(slow))])
    return float((sums >= ranks[len(plain) :].sum()).mean())


def slowed(task: dict[str, Any]) -> dict[str, Any]:
    """`eval.latency.measure` of a transcriber that works on for a share of each clip's time."""
    decode = Transcriber.decode

    def slower(self: Transcriber, mel_BFT: np.ndarray, **options: Any) -> Any:
        started = time.perf_counter()
        result = decode(self, mel_BFT, **options)
        end = time.perf_counter() + SLOWER * (time.perf_counter() - started)
        while time.perf_counter() < end:
            pass
        return result

    Transcriber.decode = slower  # type: ignore[method-assign]
    return measure(task)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        without_sklearn()
        print(json.dumps(slowed(json.load(sys.stdin))))
    else:
        run_main(main)
