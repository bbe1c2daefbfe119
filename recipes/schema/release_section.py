"""The recipe's release section: what is made ready for others, and under which terms."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from recipes.schema.export_section import ExportSection, Precision
from recipes.schema.section import Section

Runtime = Literal["onnx", "openvino", "tflite", "mobile", "ctranslate2", "compressed_tensors"]


class ReleaseSection(Section):
    """The folder that others pick up: the student, chosen exports, a model card."""

    licence: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Of the student's weights, as the Hub spells it, such as apache-2.0 or cc-by-sa-4.0."""
    artefacts: dict[Runtime, list[Precision]] | None = None
    """Exports to take along by runtime and precision, such as {onnx: [int8]}; null takes all that the recipe makes."""
    repository: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    """Hub id, `owner/name`, to push to; null where `--repository` names it."""
    private: bool = True
    """Whether the repository is; a public one that is there already is refused then."""
    language: list[str] | None = Field(default=None, min_length=1)
    """Language codes in the model card; null takes teacher.language, or en of English-only models."""
    tags: list[str] = Field(default=[])
    """More tags for the model card."""
    teacher_licence: str | None = None
    """Of the teacher's weights."""
    data_licences: dict[str, str] = Field(default={})
    """Licence of each source of audio, by its name."""
    limits: list[str] = Field(default=[])
    """Sentences on what the student is not fit for, beyond what was measured."""

    def chosen(self, export: ExportSection) -> list[tuple[str, str, Precision]]:
        """Name, runtime and precision of the exports that are taken along."""
        wanted = self._named
        return [artefact for artefact in export.artefacts if wanted is None or artefact[0] in wanted]

    def check(self, export: ExportSection, sources: Sequence[str]) -> None:
        """ValueError for an artefact that the recipe does not export, and for the licence of a source it lacks."""
        made = [name for name, _, _ in export.artefacts]
        if wrong := [name for name in self._named or () if name not in made]:
            raise ValueError(
                f"release.artefacts: expected some of {', '.join(made)}, found {wrong[0]}; add it to export"
            )
        if unknown := [name for name in self.data_licences if name not in sources]:
            raise ValueError(f"release.data_licences: expected some of {', '.join(sources)}, found {unknown[0]}")

    @property
    def _named(self) -> list[str] | None:
        """Names of the chosen artefacts; None for all."""
        if self.artefacts is None:
            return None
        return [f"{runtime}-{precision}" for runtime, precisions in self.artefacts.items() for precision in precisions]
