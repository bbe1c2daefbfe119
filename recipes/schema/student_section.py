"""TODO: recipes.schema.student_section."""

from typing import Literal

from pydantic import Field

from recipes.schema.section import Section


class StudentSection(Section):
    """What is cut from the teacher."""

    init: Literal["teacher", "scratch"] | str = "teacher"
    """What it is cut from: the teacher, or a finished student, a folder or Hub id of the teacher's family. `scratch`
    takes the teacher's shape and vocabulary alone, with random weights: how a teacher begins."""
    decoder_layers: int = Field(gt=0)
    """Decoder layers kept, maximally spaced, first and last among them."""
    encoder_layers: int | None = Field(default=None, gt=0)
    """Encoder layers kept in the same way; null copies it whole. A cut one wants train.freeze_encoder: false."""

    def source(self, teacher: str) -> tuple[str, str]:
        """Folder or Hub id of the model that is cut, and the recipe's key that names it."""
        return (teacher, "teacher.model") if self.init in ("teacher", "scratch") else (self.init, "student.init")
