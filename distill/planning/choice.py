"""The largest students that keep a budget, by what they are predicted to cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.planning.cost_model import CostModel
from distill.planning.random_students import Artefact
from distill.planning.search_space import Candidate, PlannedTeacher
from eval.latency.budget_verdict import judge_artefact
from recipes.core.whisper_shape import WhisperShape
from recipes.schema.device_budget import DeviceBudget


@dataclass(frozen=True)
class StudentOption:
    """A student in one artefact, beside the budget."""

    candidate: Candidate
    shape: WhisperShape
    artefact: Artefact
    figures: Mapping[str, float]
    """Predicted, or measured."""
    verdict: Mapping[str, Any]
    """Of `eval.latency.budget_verdict`, on what can be known before training."""

    @property
    def kept(self) -> bool:
        """Whether every limit is kept, and by more than the prediction may be wrong."""
        return bool(self.verdict["kept"] and self.verdict["safe"])

    @property
    def margins(self) -> dict[str, float]:
        """By limit what is left of it, a share; negative beyond it."""
        return {
            row["limit"]: 1 - row["measured"] / row["allowed"] for row in self.verdict["rows"] if row["allowed"]
        }  # fmt: skip

    @property
    def size(self) -> tuple[float, ...]:
        """What makes one student larger than another: weights in layers, then window, then tokens."""
        layers = self.shape.parameters - self.shape.cut(1, 1).parameters
        return layers, self.candidate.seconds, self.candidate.tokens or float("inf")


def judge_candidate(
    budget: DeviceBudget, candidate: Candidate, shape: WhisperShape, artefact: Artefact, figures: Mapping[str, float],
    errors: Mapping[str, float], factor: float = 1.0,
) -> StudentOption:  # fmt: skip
    """Beside the budget's limits, but for the WER; `errors` are shares by which a figure may be wrong."""
    limits = budget.limits.model_copy(update={"wer_increase": None})
    band = {key: (figures[key] * (1 - error), figures[key] * (1 + error)) for key, error in errors.items()}
    variant: dict[str, Any] = {
        "name": "-".join(artefact), "clip_ms": {"p50": figures["clip_p50_ms"], "p95": figures["clip_p95_ms"]},
        "rtf": figures["rtf"], "peak_rss_mb": figures["peak_rss_mb"], "size_mb": figures["size_mb"], "noise": band,
    }  # fmt: skip
    peak = band.get("peak_rss_mb", (0.0, figures["peak_rss_mb"]))[1]
    if budget.memory_mb is not None and peak > budget.memory_mb:
        variant |= {"fits": False, "reason": f"up to {peak:.0f} MB expected, the cap is {budget.memory_mb:g} MB"}
    said = judge_artefact(budget.model_copy(update={"limits": limits}), variant, None, factor=factor)
    return StudentOption(candidate, shape, artefact, figures, said)


def predict_options(
    budget: DeviceBudget, teacher: PlannedTeacher, candidates: Sequence[Candidate],
    fitted: Mapping[Artefact, tuple[CostModel, Mapping[str, float]]], factor: float = 1.0,
) -> list[StudentOption]:  # fmt: skip
    """Every candidate in every artefact as its cost model predicts it."""
    return [
        judge_candidate(budget, candidate, shape, artefact, costs.predict(shape), errors, factor)
        for candidate in candidates
        for shape in [teacher.cut(candidate)]
        for artefact, (costs, errors) in fitted.items()
    ]


def largest_options(found: Sequence[StudentOption]) -> list[StudentOption]:
    """Those that pass and that no other passing one surpasses in depth, window and tokens; the largest first.

    Of one student's artefacts the cheapest stands for it, as in a report: the smallest on disk, then the fastest.
    """
    cheapest: dict[Candidate, StudentOption] = {}
    for option in sorted(found, key=lambda each: (each.figures["size_mb"], each.figures["clip_p50_ms"])):
        if option.kept:
            cheapest.setdefault(option.candidate, option)
    top: list[StudentOption] = []
    for option in sorted(cheapest.values(), key=lambda each: each.size, reverse=True):
        # One that surpasses it in everything is larger, and stands here already.
        if not any(_covers(other.candidate, option.candidate) for other in top):
            top.append(option)
    return top


def nearest_option(found: Sequence[StudentOption]) -> StudentOption:
    """The one that misses its worst limit by least."""
    return max(found, key=lambda option: min(option.margins.values(), default=1.0))


def _covers(one: Candidate, other: Candidate) -> bool:
    return (
        one.encoder_layers >= other.encoder_layers
        and one.decoder_layers >= other.decoder_layers
        and one.seconds >= other.seconds
        and (one.tokens or float("inf")) >= (other.tokens or float("inf"))
    )
