"""The `budget` section: the devices that the student has to fit."""

from pathlib import Path

from recipes.schema.section import Section


class BudgetSection(Section):
    """Devices whose limits on latency, memory, size and WER the exported artefacts are compared with."""

    device: Path
    """Budget file of the main device, such as `recipes/budgets/laptop.yaml`."""
    required: bool = True
    """End the run with exit status 3 if no artefact keeps the budget of `device`."""
    also: list[Path] = []
    """Budget files of further devices. They are judged and reported, but never required."""

    @property
    def devices(self) -> list[Path]:
        """All budget files, `device` first."""
        return [self.device, *self.also]
