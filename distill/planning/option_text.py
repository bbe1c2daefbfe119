"""Show student options and prediction errors as text."""

from collections.abc import Mapping, Sequence

from distill.planning.choice import StudentOption
from distill.planning.cost_model import LIMITED, FittedCosts
from distill.planning.random_students import Artefact


def options_table(options: Sequence[StudentOption]) -> str:
    """Return an aligned table: per student its shape, and each limited figure with its margin in percent."""
    limits = [f"{row.limit:>24}" for row in options[0].verdict.rows]
    head = f"{'encoder':>7} {'decoder':>7} {'window':>6} {'tokens':>6}  {'artefact':<16} {'weights':>9}"
    return "\n".join([" ".join([head, *limits]), *map(_table_line, options)])


def option_sentence(option: StudentOption) -> str:
    """Return the same about one option in a line of prose, with the limits themselves."""
    figures = [f"{row.limit} {row.measured:.3g} {row.unit} of {row.allowed:g}" for row in option.verdict.rows]
    candidate = option.candidate
    return (
        f"{candidate.encoder_layers} encoder and {candidate.decoder_layers} decoder layers, {candidate.seconds} s, "
        f"{candidate.tokens or 'all'} tokens, {'-'.join(option.artefact)}: {', '.join(figures)}"
    )


def errors_sentence(fitted: Mapping[Artefact, FittedCosts]) -> str:
    """Return in a sentence how far the predictions for each artefact are off."""
    names = dict(zip(LIMITED, ("clip p95", "real-time factor", "memory", "size"), strict=True))
    errors = [
        f"{' '.join(artefact)} "
        + ", ".join(f"{names[key]} {100 * getattr(costs.errors, key):.0f} %" for key in LIMITED)
        for artefact, costs in fitted.items()
    ]
    return f"Error of the predictions for shapes left out of the fit (root mean square): {'; '.join(errors)}."


def _table_line(option: StudentOption) -> str:
    candidate, weights = option.candidate, f"{option.shape.parameters / 1e6:.1f} M"
    shape = f"{candidate.encoder_layers:>7} {candidate.decoder_layers:>7} {candidate.seconds:>4} s "
    cells = []
    for row in option.verdict.rows:
        assert row.measured is not None
        margin, figure = 1 - row.measured / row.allowed, f"{row.measured:.3g} {row.unit}".rstrip()
        cells.append(f"{figure} ({100 * margin:+.0f} %)")
    return " ".join([
        shape + f"{candidate.tokens or 'all':>6}  {'-'.join(option.artefact):<16} {weights:>9}",
        *(f"{cell:>24}" for cell in cells),
    ])  # fmt: skip
