"""The `release` section: what is published, and under which terms."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from recipes.schema.export_section import ExportArtefact, ExportSection, Precision
from recipes.schema.section import Section

Runtime = Literal["onnx", "openvino", "tflite", "mobile", "ctranslate2", "compressed_tensors"]


class ReleaseSection(Section):
    """A folder to publish: the student, the chosen exports and a model card."""

    licence: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Licence of the student's weights, in the Hub's spelling, such as apache-2.0 or cc-by-sa-4.0."""
    artefacts: dict[Runtime, list[Precision]] | None = None
    """Exports to include, as precisions by runtime, such as {onnx: [int8]}. Null includes all exports of the recipe."""
    repository: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    """Hub id (`owner/name`) of the repository to push to. Null if it is given with `--repository`."""
    private: bool = True
    """Push to a private repository. If it exists and is public, the push is refused."""
    language: list[str] | None = Field(default=None, min_length=1)
    """Language codes in the model card. Null uses `teacher.language`, or `en` for English-only models."""
    tags: list[str] = Field(default=[])
    """Additional tags in the model card."""
    teacher_licence: str | None = None
    """Licence of the teacher's weights, for the model card."""
    data_licences: dict[str, str] = Field(default={})
    """Licence of each audio source by its name, for the model card."""
    limits: list[str] = Field(default=[])
    """Sentences in the model card about what the student should not be used for, in addition to what was measured."""

    def chosen_artefacts(self, export: ExportSection) -> list[ExportArtefact]:
        """Return the artefacts of `export` to include in the release."""
        names = self._artefact_names
        return [artefact for artefact in export.artefacts if names is None or artefact.name in names]

    def check(self, export: ExportSection, sources: Sequence[str]) -> None:
        """Raise ValueError for an artefact that `export` does not write, or for the licence of an unknown source."""
        exported = [artefact.name for artefact in export.artefacts]
        if missing := [name for name in self._artefact_names or () if name not in exported]:
            raise ValueError(
                f"release.artefacts: expected some of {', '.join(exported)}, found {missing[0]}; add it to export"
            )
        if unknown := [name for name in self.data_licences if name not in sources]:
            raise ValueError(f"release.data_licences: expected some of {', '.join(sources)}, found {unknown[0]}")

    @property
    def _artefact_names(self) -> list[str] | None:
        """Names of the artefacts to include; None for all."""
        if self.artefacts is None:
            return None
        return [f"{runtime}-{precision}" for runtime, precisions in self.artefacts.items() for precision in precisions]
