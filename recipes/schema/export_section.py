"""TODO: recipes.schema.export_section."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from recipes.schema.section import Section

DensePrecision = Literal["fp32", "fp16", "int8"]
Precision = Literal[DensePrecision, "w8a8", "w4a16"]
"""In bits of weights and activations the last two."""


class ParityTolerance(Section):
    """How far an export may be from torch on real audio."""

    clips: int = Field(default=32, gt=0)
    """Validation clips compared."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest greedy text compared, in tokens; null for the model's own limit."""
    min_psnr_db: dict[Precision, float] = {"fp32": 80.0, "fp16": 50.0, "int8": 15.0, "w8a8": 15.0, "w4a16": 10.0}
    """Least peak signal-to-noise ratio of encoder states and logits, dB, by precision."""
    min_equal_text: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.9, "int8": 0.6, "w8a8": 0.6, "w4a16": 0.4}
    """Least share of clips with the same greedy text, by precision."""
    max_wer_increase: dict[Precision, float] = {"fp32": 0.5, "fp16": 1.0, "int8": 3.0, "w8a8": 3.0, "w4a16": 5.0}
    """Most WER above torch's on those of the clips that have a transcript, percentage points, by precision."""

    @field_validator("min_psnr_db", "min_equal_text", "max_wer_increase", mode="before")
    @classmethod
    def _others_as_by_default(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        return {**cls.model_fields[info.field_name].default, **value} if isinstance(value, dict) else value


SMOOTH_QUANT_ALPHAS: tuple[float | None, ...] = (None, 0.35, 0.5, 0.65, 0.8)


class ExportSection(Section):
    """Files for devices."""

    onnx: list[DensePrecision] = ["fp32", "fp16", "int8"]
    """ONNX precisions to write; like all others, each is checked against torch."""
    openvino: list[DensePrecision] = []
    """OpenVINO precisions, with a stateful decoder; int8 is calibrated by NNCF on training audio."""
    smooth_quant: list[Annotated[float, Field(ge=0, le=1)] | None] = Field(default=[*SMOOTH_QUANT_ALPHAS], min_length=1)
    """Shares of SmoothQuant that OpenVINO's int8 encoder chooses among; null leaves it out."""
    tflite: list[DensePrecision] = []
    """LiteRT (TFLite) precisions, with a static cache; needs `pip install 'sottovoce[tflite]'`."""
    mobile: list[Literal["fp32"]] = []
    """The same graphs split for mobile NPUs: one head at a time, 1x1 convolutions, in LiteRT and ONNX."""
    ctranslate2: list[Literal["fp32", "int8"]] = []
    """CTranslate2 precisions, for faster-whisper."""
    compressed_tensors: list[Literal["w8a8", "w4a16"]] = []
    """Checkpoints rounded by GPTQ on training audio, for vLLM; needs `pip install 'sottovoce[int4]'`."""
    alignment_clips: int = Field(default=0, ge=0)
    """Strings of joined training utterances on which heads for word times are chosen, such as 64; 0 chooses none."""
    parity: ParityTolerance = ParityTolerance()
    """Tolerances; beyond them the stage fails."""

    @property
    def artefacts(self) -> list[tuple[str, str, Precision]]:
        """Name, runtime and precision of everything to write."""
        runtimes = ("onnx", "openvino", "tflite", "mobile", "ctranslate2", "compressed_tensors")
        return [
            (f"{runtime}-{precision}", runtime, precision)
            for runtime in runtimes
            for precision in getattr(self, runtime)
        ]
