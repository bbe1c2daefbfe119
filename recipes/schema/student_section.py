"""The `student` section: the model that the student starts from, and its depth."""

from typing import Literal

from pydantic import Field

from recipes.schema.section import Section


class StudentSection(Section):
    """The student before training: a copy of a model with fewer layers."""

    init: Literal["teacher", "scratch"] | str = "teacher"
    """Model to copy the student from: the teacher, or a folder or Hub id of a finished student with the teacher's
    vocabulary. `scratch` uses the shape and the vocabulary of the teacher with random weights, to train a new
    teacher."""
    decoder_layers: int = Field(gt=0)
    """Number of decoder layers to keep. They are spaced as widely as possible and include the first and the last."""
    encoder_layers: int | None = Field(default=None, gt=0)
    """Number of encoder layers to keep, chosen in the same way. Null keeps all. A shallower encoder should be trained:
    set `train.freeze_encoder: false`."""

    def source(self, teacher: str) -> tuple[str, str]:
        """Return the folder or Hub id of the model to copy, and the recipe key that names it."""
        return (teacher, "teacher.model") if self.init in ("teacher", "scratch") else (self.init, "student.init")
