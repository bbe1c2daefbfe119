"""TODO: recipes.schema.budget_section."""

from pathlib import Path

from recipes.schema.section import Section


class BudgetSection(Section):
    """The devices the student must fit."""

    device: Path
    """Budget file, such as recipes/budgets/laptop.yaml."""
    required: bool = True
    """End with exit status 3 when no artefact keeps this device's budget."""
    also: list[Path] = []
    """Budget files of more devices: judged and reported, never required."""

    @property
    def devices(self) -> list[Path]:
        """All budget files, `device` first."""
        return [self.device, *self.also]
