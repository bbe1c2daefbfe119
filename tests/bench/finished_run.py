"""Print the figures of a run's finished benchmark stage as one JSON line, for `make bench`; nothing is measured anew.

    python -m tests.bench.finished_run recipes/demo/recipe.yaml

The figures are those of latency.json: per exported artefact the times of a clip, of the encoder and of a decoder step,
memory and size, and the speed-up over the teacher in PyTorch float32 with its interval.
"""

import json
from collections.abc import Mapping

from recipes.core.errors import UserError, run_main
from recipes.engine.stage_folder import parse_stage_arguments
from recipes.engine.stage_record import read_record


def main() -> None:
    """Read latency.json and print a row per artefact, with the best figures of the int8 artefacts in front."""
    recipe, _ = parse_stage_arguments("benchmark")
    folder = recipe.root / "benchmark"
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder}: expected a finished benchmark stage, found none; run `sottovoce run` first")
    latency = json.loads((folder / "latency.json").read_text())
    rows = {
        row["name"]: {
            "clip_p50_ms": round(row["clip_ms"]["p50"], 2),
            "clip_p95_ms": round(row["clip_ms"]["p95"], 2),
            "speedup": round(row["speedup"], 3),
            "speedup_interval": [round(value, 3) for value in row["speedup_interval"]],
            "encoder_p50_ms": round(row["encoder_ms"]["p50"], 2),
            "token_p50_ms": round(row["token_ms"]["p50"], 3),
            "peak_rss_mb": round(row["peak_rss_mb"], 1),
            "size_mb": round(row["size_mb"], 2),
        }
        for row in latency["variants"]
    }
    int8_rows = [row for name, row in rows.items() if name.endswith("int8")]
    summary = {
        "bench": "export", "run": recipe.name,
        "best_int8_ratio": max((row["speedup"] for row in int8_rows), default=None),
        "int8_step_ratio": _ratio(rows, "token_p50_ms", "onnx-int8", "onnx-fp32"),
        "least_int8_rss_mb": min((row["peak_rss_mb"] for row in int8_rows), default=None),
        "baseline": latency["baseline"], "drift": round(latency["baseline_drift"], 3),
    }  # fmt: skip
    print(json.dumps(summary | {"threads": latency["threads"], "cpu": record["machine"]["cpu"], "variants": rows}))


def _ratio(rows: Mapping[str, Mapping[str, float]], figure: str, name: str, other: str) -> float | None:
    return round(rows[name][figure] / rows[other][figure], 3) if name in rows and other in rows else None


if __name__ == "__main__":
    run_main(main)
