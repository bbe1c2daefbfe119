"""Intervals and p values by resampling, with scipy.

Apart from `eval.scoring.error_rates`, since importing `scipy.stats` takes a second that stages which only count errors
need not wait for.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from eval.scoring.accuracy_rows import Interval
from eval.scoring.error_rates import ErrorCounts

BATCH = 50
"""Resamples of the bootstrap that are held in memory at once."""
PERMUTATION_BATCH = 500
"""Permutations that are held in memory at once."""


def bootstrap(errors: ErrorCounts, minus: ErrorCounts | None = None, *, resamples: int, seed: int) -> Interval:
    """Return the error rate in percent, or its difference to that of `minus`, with a 95 % percentile interval.

    Utterances are resampled. The difference is paired: both systems are resampled on the same utterances.
    """
    return macro_bootstrap([errors], None if minus is None else [minus], resamples=resamples, seed=seed)


def macro_bootstrap(
    sets: Sequence[ErrorCounts], minus: Sequence[ErrorCounts] | None = None, *, resamples: int, seed: int
) -> Interval:
    """Return the unweighted mean of the error rates of several test sets, each resampled within itself.

    Otherwise as `bootstrap`. The statistic is a mean of ratios of sums, so the samples that scipy resamples are the
    indices of the utterances, one sample per test set.
    """
    others = minus if minus is not None else [None] * len(sets)
    edits = [
        mine.total if other is None else mine.total - other.total for mine, other in zip(sets, others, strict=True)
    ]
    units = [errors.units for errors in sets]

    def macro_rate(*indices: np.ndarray, axis: int = -1) -> np.ndarray:
        rates = [
            100.0 * edits_U[index].sum(axis) / np.maximum(1, units_U[index].sum(axis))
            for edits_U, units_U, index in zip(edits, units, indices, strict=True)
        ]
        return np.mean(rates, axis=0)

    everything = [np.arange(len(edits_U)) for edits_U in edits]
    # scipy wants two observations in each sample; counting a lone utterance twice leaves its rate as it is.
    samples = [np.resize(index, max(2, len(index))) for index in everything]
    interval = stats.bootstrap(
        samples, macro_rate, n_resamples=resamples, batch=BATCH, vectorized=True, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(float(macro_rate(*everything)), float(interval.low), float(interval.high))


def permutation_test(
    sets: Sequence[ErrorCounts], others: Sequence[ErrorCounts], *, seed: int, permutations: int = 10_000
) -> float:
    """Return the two-sided p value of equal macro error rates, by approximate randomisation (Noreen 1989).

    If two systems are equally good, it is chance which of them wrote which text. The texts are therefore swapped at
    random, utterance by utterance, and p is the share of swaps whose error rates are at least as far apart as those
    observed. Swapping two texts of the same reference changes the sign of their difference in edits, so this is a
    permutation test over signs; it is exact where there are no more sign patterns than `permutations`. Utterances with
    equal edits change nothing and are left out.
    """
    differences_U = np.concatenate([
        (mine.total - other.total) / max(1, int(mine.units.sum())) for mine, other in zip(sets, others, strict=True)
    ])  # fmt: skip
    differences_U = differences_U[differences_U != 0]
    if len(differences_U) < 2:
        return 1.0  # both signs of a single difference are equally far from zero
    differences_U /= np.abs(differences_U).sum()

    def distance(signed: np.ndarray, axis: int = -1) -> np.ndarray:
        # Sums of the same numbers in another order differ in their last bits; rounding makes them equal again.
        return np.round(np.abs(signed.sum(axis)), 9)

    result = stats.permutation_test(
        (differences_U,), distance, permutation_type="samples", vectorized=True, n_resamples=permutations,
        batch=PERMUTATION_BATCH, alternative="greater", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def median_interval(values: Sequence[float] | np.ndarray, resamples: int = 2000) -> Interval:
    """Return the median of `values` with its 95 % percentile bootstrap interval."""
    interval = stats.bootstrap(
        (np.asarray(values),), np.median, n_resamples=resamples, vectorized=True, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(float(np.median(values)), float(interval.low), float(interval.high))
