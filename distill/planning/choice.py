"""Choose the largest students that keep a device budget, from what they are predicted or measured to cost."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from distill.planning.cost_model import CostFigures, FittedCosts, PredictionErrors
from distill.planning.random_students import Artefact
from distill.planning.search_space import Candidate, PlannedTeacher
from eval.latency.budget_verdict import judge_artefact
from eval.latency.verdict_rows import ArtefactFigures, ArtefactVerdict
from recipes.core.whisper_shape import WhisperShape
from recipes.schema.device_budget import DeviceBudget


@dataclass(frozen=True)
class StudentOption:
    """A student exported as one artefact, with its cost and the budget's verdict on it."""

    candidate: Candidate
    shape: WhisperShape
    artefact: Artefact
    figures: CostFigures
    """The cost on this machine, predicted by the cost model or measured."""
    verdict: ArtefactVerdict
    """The verdict of `eval.latency.budget_verdict` on every limit that can be checked before training."""

    @property
    def passes(self) -> bool:
        """Whether every limit is kept by more than the prediction's error."""
        return self.verdict.kept and self.verdict.safe

    @property
    def margins(self) -> dict[str, float]:
        """For each limit the share of it that is left; negative if the limit is exceeded."""
        return {
            row.limit: 1 - row.measured / row.allowed
            for row in self.verdict.rows
            if row.allowed and row.measured is not None
        }

    @property
    def size(self) -> tuple[float, ...]:
        """Key for sorting by size: first the weights in the layers, then the window, then the vocabulary."""
        layers = self.shape.parameters - self.shape.cut(1, 1).parameters
        return layers, self.candidate.seconds, self.candidate.tokens or float("inf")


def judge_candidate(
    budget: DeviceBudget, candidate: Candidate, shape: WhisperShape, artefact: Artefact, figures: CostFigures,
    errors: PredictionErrors, factor: float = 1.0,
) -> StudentOption:  # fmt: skip
    """Compare a candidate with every limit of the budget except the WER, which is unknown before training.

    Args:
        budget: The device budget.
        candidate: The student.
        shape: The student's shape.
        artefact: Runtime and precision.
        figures: Cost on this machine.
        errors: Relative errors of `figures`; a limit within the error is not counted as kept.
        factor: Time on the device divided by time on this machine.
    """
    limits = budget.limits.model_copy(update={"wer_increase": None})
    bands = {
        key: (getattr(figures, key) * (1 - error), getattr(figures, key) * (1 + error))
        for key, error in asdict(errors).items()
    }
    _, peak_mb = bands["peak_rss_mb"]
    fits = budget.memory_mb is None or peak_mb <= budget.memory_mb
    limited = ArtefactFigures(
        "-".join(artefact), figures.clip_p95_ms, figures.rtf, figures.peak_rss_mb, figures.size_mb, bands, fits=fits,
        reason=None if fits else f"up to {peak_mb:.0f} MB expected, the cap is {budget.memory_mb:g} MB",
    )  # fmt: skip
    verdict = judge_artefact(budget.model_copy(update={"limits": limits}), limited, None, factor=factor)
    return StudentOption(candidate, shape, artefact, figures, verdict)


def predict_options(
    budget: DeviceBudget, teacher: PlannedTeacher, candidates: Sequence[Candidate],
    fitted: Mapping[Artefact, FittedCosts], factor: float = 1.0,
) -> list[StudentOption]:  # fmt: skip
    """Predict the cost of every candidate in every artefact, and judge it. `factor` as for `judge_candidate`."""
    return [
        judge_candidate(budget, candidate, shape, artefact, costs.model.predict(shape), costs.errors, factor)
        for candidate in candidates
        for shape in [teacher.cut(candidate)]
        for artefact, costs in fitted.items()
    ]


def largest_options(options: Sequence[StudentOption]) -> list[StudentOption]:
    """Return the passing options that no other passing one matches or exceeds in depth, window and vocabulary.

    The largest comes first. A candidate that passes in several artefacts is represented by the cheapest, as in a
    report: the smallest on disk, and among equals the fastest.
    """
    cheapest: dict[Candidate, StudentOption] = {}
    for option in sorted(options, key=lambda option: (option.figures.size_mb, option.figures.clip_p50_ms)):
        if option.passes:
            cheapest.setdefault(option.candidate, option)
    largest: list[StudentOption] = []
    for option in sorted(cheapest.values(), key=lambda option: option.size, reverse=True):
        # An option that exceeds this one in everything is larger, so it is in the list already.
        if not any(_covers(larger.candidate, option.candidate) for larger in largest):
            largest.append(option)
    return largest


def nearest_option(options: Sequence[StudentOption]) -> StudentOption:
    """Return the option that exceeds the limit it fails most clearly by the smallest share."""
    return max(options, key=lambda option: min(option.margins.values(), default=1.0))


def _covers(larger: Candidate, smaller: Candidate) -> bool:
    return (
        larger.encoder_layers >= smaller.encoder_layers
        and larger.decoder_layers >= smaller.decoder_layers
        and larger.seconds >= smaller.seconds
        and (larger.tokens or float("inf")) >= (smaller.tokens or float("inf"))
    )
