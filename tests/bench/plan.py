"""How well `sottovoce plan` predicts shapes that its cost models were not fitted to: predict them, then measure them.

    python -m tests.bench.plan TEACHER [--shapes 10] [--seed 0] [--artefacts onnx-int8 ...]        one JSON line

TEACHER is the name of a shape or a folder, as for the command. The shapes are drawn with the seed from all that a plan
would consider. Measurements are cached where `sottovoce plan` looks for them too.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from distill.planning.cost_model import LIMITED, FittedCosts
from distill.planning.search_space import PlannedTeacher, SearchSpace
from distill.planning.shape_timings import ShapeTimings
from recipes.core.errors import run_main
from recipes.core.machine import describe_machine


def main() -> None:
    """Fit the cost models to the design, draw other shapes, measure them and compare."""
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
    args = parser.parse_args()
    teacher = PlannedTeacher.find(args.teacher, args.vocabulary, args.language)
    space = SearchSpace.of(teacher, args.seconds)
    design = space.design()
    unseen = [candidate for candidate in space.candidates() if candidate not in design]
    drawn = np.random.default_rng(args.seed).permutation(len(unseen))[: args.shapes]
    artefacts = [(runtime, precision) for runtime, precision in (name.split("-") for name in args.artefacts)]
    timings = ShapeTimings(
        teacher, args.cache, args.threads, args.seconds, args.tokens, args.runs, args.language
    )  # fmt: skip
    # One call, so that the median time of the reference model is the same for the fitted and for the predicted shapes.
    measured = timings.measure([*design, *(unseen[index] for index in drawn)], artefacts)
    rows, summary = [], {}
    for artefact, points in measured.items():
        costs, name = FittedCosts.fit(points[: len(design)], args.tokens), "-".join(artefact)
        errors: dict[str, list[float]] = {key: [] for key in ("clip_p50_ms", *LIMITED)}
        for index, point in zip(drawn, points[len(design) :], strict=True):
            predicted = costs.model.predict(point.shape)
            pairs = {key: (getattr(predicted, key), getattr(point.figures, key)) for key in errors}
            for key, (prediction, measurement) in pairs.items():
                errors[key].append(prediction / measurement - 1)
            figures = {key: [round(value, 3) for value in pair] for key, pair in pairs.items()}
            rows.append({"artefact": name, **vars(unseen[index]), **figures})
        summary[name] = {
            "median_error_percent": {key: _percent(np.median(np.abs(values))) for key, values in errors.items()},
            "largest_percent": {key: _percent(np.max(np.abs(values))) for key, values in errors.items()},
            "left_out_percent": {key: _percent(error) for key, error in vars(costs.errors).items()},
        }
    print(json.dumps({
        "bench": "plan", "teacher": args.teacher, "threads": args.threads, "cpu": describe_machine()["cpu"],
        "measured_for_fit": len(design), "unseen": len(drawn), "seed": args.seed, "summary": summary,
        "rows_are": "predicted, measured", "rows": rows,
    }))  # fmt: skip


def _percent(share: float) -> float:
    return round(100 * float(share), 2)


if __name__ == "__main__":
    run_main(main)
