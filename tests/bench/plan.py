"""How well `sottovoce plan` predicts: shapes that its cost models have not seen, predicted and then measured.

    python -m tests.bench.plan TEACHER [--shapes 10] [--seed 0] [--artefacts onnx-int8 ...]        one JSON line

TEACHER is a shape or a folder, as for the command. Shapes are drawn with the seed from all that a plan would consider;
what is measured is kept in the cache, where a plan finds it.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from distill.planning.cost_model import LIMITED, CostModel, leave_one_out_errors
from distill.planning.search_space import PlannedTeacher, SearchSpace
from distill.planning.shape_timings import ShapeTimings
from recipes.core.errors import run_main
from recipes.core.machine import describe_machine


def main() -> None:
    """Fit to the design, draw, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--artefacts", nargs="+", default=["onnx-int8", "openvino-int8"])
    parser.add_argument("--shapes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--language", default="en")
    parser.add_argument("--cache", type=Path, default=Path("runs/plan"))
    given = parser.parse_args()
    teacher = PlannedTeacher.find(given.teacher, given.vocabulary, given.language)
    space = SearchSpace.of(teacher, given.seconds)
    design = space.design()
    unseen = [candidate for candidate in space.candidates() if candidate not in design]
    drawn = np.random.default_rng(given.seed).permutation(len(unseen))[: given.shapes]
    artefacts = [(runtime, precision) for runtime, precision in (name.split("-") for name in given.artefacts)]
    measuring = ShapeTimings(
        teacher, given.cache, given.threads, given.seconds, given.tokens, given.runs, given.language
    )  # fmt: skip
    # All in one go, so that the yardstick's median is the same for what is fitted and for what is predicted.
    measured = measuring.points([*design, *(unseen[index] for index in drawn)], artefacts)
    rows, summary = [], {}
    for artefact, points in measured.items():
        fitted, name = points[: len(design)], "-".join(artefact)
        costs = CostModel.fit(fitted, given.tokens)
        wrong: dict[str, list[float]] = {key: [] for key in ("clip_p50_ms", *LIMITED)}
        for index, (shape, found) in zip(drawn, points[len(design) :], strict=True):
            said = costs.predict(shape)
            for key, values in wrong.items():
                values.append(said[key] / found[key] - 1)
            figures = {key: [round(said[key], 3), round(found[key], 3)] for key in wrong}
            rows.append({"artefact": name, **vars(unseen[index]), **figures})
        summary[name] = {
            "median_error_percent": {key: _percent(np.median(np.abs(each))) for key, each in wrong.items()},
            "largest_percent": {key: _percent(np.max(np.abs(each))) for key, each in wrong.items()},
            "left_out_percent": {
                key: _percent(each) for key, each in leave_one_out_errors(fitted, given.tokens).items()
            },
        }
    print(json.dumps({
        "bench": "plan", "teacher": given.teacher, "threads": given.threads, "cpu": describe_machine()["cpu"],
        "measured_for_fit": len(design), "unseen": len(drawn), "seed": given.seed, "summary": summary,
        "rows_are": "predicted, measured", "rows": rows,
    }))  # fmt: skip


def _percent(share: float) -> float:
    return round(100 * float(share), 2)


if __name__ == "__main__":
    run_main(main)
