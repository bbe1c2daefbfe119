"""TODO: distill.planning.option_text."""

from collections.abc import Sequence

from distill.planning.choice import StudentOption
from distill.planning.cost_model import LIMITED
from distill.planning.random_students import Artefact


def options_table(found: Sequence[StudentOption]) -> str:
    """Aligned text, a student a line: its shape, and each limited figure with what it leaves of its limit."""
    limits = [f"{row['limit']:>24}" for row in found[0].verdict["rows"]]
    head = f"{'encoder':>7} {'decoder':>7} {'window':>6} {'tokens':>6}  {'artefact':<16} {'weights':>9}"
    return "\n".join([" ".join([head, *limits]), *map(option_line, found)])


def option_line(option: StudentOption) -> str:
    """One student."""
    candidate, weights = option.candidate, f"{option.shape.parameters / 1e6:.1f} M"
    shape = f"{candidate.encoder_layers:>7} {candidate.decoder_layers:>7} {candidate.seconds:>4} s "
    cells = [f"{f'{figure:.3g} {unit}'.rstrip()} ({100 * share:+.0f} %)" for figure, unit, share in _cells(option)]
    return " ".join([
        shape + f"{candidate.tokens or 'all':>6}  {'-'.join(option.artefact):<16} {weights:>9}",
        *(f"{cell:>24}" for cell in cells),
    ])  # fmt: skip


def option_sentence(option: StudentOption) -> str:
    """The same in a sentence."""
    figures = [
        f"{row['limit']} {row['measured']:.3g} {row['unit']} of {row['allowed']:g}" for row in option.verdict["rows"]
    ]
    candidate = option.candidate
    return (
        f"{candidate.encoder_layers} encoder and {candidate.decoder_layers} decoder layers, {candidate.seconds} s, "
        f"{candidate.tokens or 'all'} tokens, {'-'.join(option.artefact)}: {', '.join(figures)}"
    )


def _cells(option: StudentOption) -> list[tuple[float, str, float]]:
    return [(row["measured"], row["unit"], 1 - row["measured"] / row["allowed"]) for row in option.verdict["rows"]]


def _misses(artefact: Artefact, said: dict[str, float]) -> str:
    names = dict(zip(LIMITED, ("clip p95", "real-time factor", "memory", "size"), strict=True))
    return " ".join(artefact) + " " + ", ".join(f"{names[key]} {100 * said[key]:.0f} %" for key in LIMITED)
