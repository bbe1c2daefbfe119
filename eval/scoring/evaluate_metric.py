"""The error rates as a metric of the `evaluate` library, without the script that `evaluate.load` would download.

Apart from `eval.scoring.error_rates`, since importing `evaluate` takes two seconds.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from eval.scoring.error_rates import count_errors


class ErrorRate(evaluate.Metric):
    """Corpus error rate in percent and its edit counts: `ErrorRate("wer")` or `ErrorRate("cer")`.

    `compute(predictions=..., references=...)` returns the rate under the name of the metric, and `substitutions`,
    `deletions`, `insertions` and `units` (words or characters of the references).
    """

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Word or character error rate over a whole corpus, counted by jiwer.",
            citation="",
            features=datasets.Features({side: datasets.Value("string") for side in ("predictions", "references")}),
        )  # fmt: skip

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        errors = count_errors(references, predictions, characters=self.config_name == "cer")
        return {
            self.config_name: errors.rate,
            "substitutions": int(errors.substitutions.sum()),
            "deletions": int(errors.deletions.sum()),
            "insertions": int(errors.insertions.sum()),
            "units": int(errors.units.sum()),
        }
