"""Stage `benchmark`: latency, memory and size of every variant, each in a fresh pinned process.

    python -m eval.benchmark recipes/demo/recipe.yaml

The teacher in PyTorch fp32 is the baseline. It is measured first and last: their ratio, the drift, tells how far the
machine's own noise reaches.
"""

import json
import os
import subprocess
import sys
from typing import Any

from tqdm import tqdm

from eval.systems import System, systems
from eval.utterances import read_utterances
from recipes.errors import RunError, UserError, run_main
from recipes.schema import Recipe
from recipes.sections import Benchmark
from recipes.stage import arguments, open_stage, write_json


def main() -> None:
    """Choose the clips, measure each variant, compare with the baseline of this run."""
    recipe, command = arguments("benchmark")
    if (section := recipe.benchmark) is None:
        raise UserError("benchmark: the recipe has no benchmark section; add `benchmark: {}` for its defaults")
    cores = len(os.sched_getaffinity(0))
    if section.threads > cores:
        raise UserError(
            f"benchmark.threads: expected at most the {cores} cores of this machine, found {section.threads}"
        )
    with open_stage(recipe, "benchmark", command) as work:
        # 1. Test clips, evenly spaced over the split, so that every test set has its share.
        test = read_utterances(recipe.root / "corpus", "test") or read_utterances(recipe.root / "corpus", "train")
        clips = [item.audio for item in test[:: max(1, len(test) // section.clips)][: section.clips]]
        # 2. One process a variant; the baseline once more at the end.
        judged = systems(recipe)
        load_average = os.getloadavg()[0]
        order = [*judged, judged[0]]
        measured = [run_variant(system, clips, section, recipe) for system in tqdm(order, "benchmark", unit="variant")]
        baseline, again = measured[0]["clip_ms"]["p50"], measured.pop()["clip_ms"]["p50"]
        # 3. Ratios to the baseline of the same run.
        variants = [
            {
                "name": system.name, "role": system.role, "runtime": system.runtime, "precision": system.precision,
                "size_mb": system.size_mb, "parameters_m": system.parameters_m, **row,
                "speedup": baseline / row["clip_ms"]["p50"],
            }
            for system, row in zip(judged, measured, strict=True)
        ]  # fmt: skip
        result = {
            "baseline": judged[0].name, "threads": section.threads, "clips": len(clips), "runs": section.runs,
            "fixed_tokens": section.tokens, "load_average": load_average, "baseline_drift": again / baseline,
            "command": command, "variants": variants,
        }  # fmt: skip
        write_json(work.folder / "latency.json", result)
        work.finish(
            counts={"variants": len(variants), "clips": len(clips)},
            metrics={
                row["name"]: {"clip_p50_ms": row["clip_ms"]["p50"], "speedup": row["speedup"]} for row in variants
            },
        )


def run_variant(system: System, clips: list[list[str]], section: Benchmark, recipe: Recipe) -> dict[str, Any]:
    """The figures of one variant from a process of its own."""
    task = {
        "folder": str(system.folder), "runtime": system.runtime, "precision": system.precision, "clips": clips,
        "threads": section.threads, "runs": section.runs, "warmup": section.warmup, "tokens": section.tokens,
        "language": recipe.teacher.language, "task": recipe.teacher.task,
    }  # fmt: skip
    threads = {name: str(section.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "eval.latency"], input=json.dumps(task), capture_output=True, text=True, check=False,
        env=os.environ | threads,
    )  # fmt: skip
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"benchmark: {system.name} ended with status {done.returncode}: {last}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    run_main(main)
