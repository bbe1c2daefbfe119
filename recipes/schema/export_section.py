"""The `export` section: which files are written for devices, and how closely they must match PyTorch."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from recipes.schema.section import Section

DensePrecision = Literal["fp32", "fp16", "int8"]
Precision = Literal[DensePrecision, "w8a8", "w4a16"]
"""Numeric precision of an artefact. The last two give the bits of weights (w) and activations (a)."""


class ExportArtefact(NamedTuple):
    """An artefact that a recipe exports."""

    name: str
    """Runtime and precision joined by a hyphen, such as `onnx-int8`."""
    runtime: str
    precision: Precision


class ParityTolerance(Section):
    """How far an export may differ from PyTorch on real audio. The defaults of a table apply to the precisions that a
    recipe leaves out."""

    clips: int = Field(default=32, gt=0)
    """Number of validation clips to compare on."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Maximum length of the greedy transcripts that are compared, in tokens. Null uses the limit of the model."""
    min_psnr_db: dict[Precision, float] = {"fp32": 80.0, "fp16": 50.0, "int8": 15.0, "w8a8": 15.0, "w4a16": 10.0}
    """Minimum peak signal-to-noise ratio of the encoder states and of the logits, in dB, by precision."""
    min_equal_text: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.9, "int8": 0.6, "w8a8": 0.6, "w4a16": 0.4}
    """Minimum fraction of clips whose greedy transcript is the same, by precision."""
    max_wer_increase: dict[Precision, float] = {"fp32": 0.5, "fp16": 1.0, "int8": 3.0, "w8a8": 3.0, "w4a16": 5.0}
    """Maximum increase in WER over PyTorch, in percentage points, by precision. Measured on those of the clips that
    have a transcript."""

    @field_validator("min_psnr_db", "min_equal_text", "max_wer_increase", mode="before")
    @classmethod
    def _complete_with_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        return {**cls.model_fields[info.field_name].default, **value} if isinstance(value, dict) else value


SMOOTH_QUANT_ALPHAS: tuple[float | None, ...] = (None, 0.35, 0.5, 0.65, 0.8)
"""Values of SmoothQuant's alpha that are tried by default; None is without SmoothQuant."""


class ExportSection(Section):
    """Model files for devices. Every artefact is compared with PyTorch on real audio."""

    onnx: list[DensePrecision] = ["fp32", "fp16", "int8"]
    """Precisions to export to ONNX."""
    openvino: list[DensePrecision] = []
    """Precisions to export to OpenVINO, with a stateful decoder. NNCF calibrates int8 on training audio."""
    smooth_quant: list[Annotated[float, Field(ge=0, le=1)] | None] = Field(default=[*SMOOTH_QUANT_ALPHAS], min_length=1)
    """Values of SmoothQuant's alpha that are tried for the int8 encoder of OpenVINO. Null means without SmoothQuant."""
    tflite: list[DensePrecision] = []
    """Precisions to export to LiteRT (TFLite), with a static cache. Needs `pip install 'sottovoce[tflite]'`."""
    mobile: list[Literal["fp32"]] = []
    """Precisions to export to graphs for mobile NPUs, in LiteRT and ONNX. They compute the same with one attention head
    at a time and with 1x1 convolutions."""
    ctranslate2: list[Literal["fp32", "int8"]] = []
    """Precisions to export to CTranslate2, for faster-whisper."""
    compressed_tensors: list[Literal["w8a8", "w4a16"]] = []
    """Precisions of checkpoints for vLLM, quantized with GPTQ on training audio. Needs `pip install
    'sottovoce[int4]'`."""
    alignment_clips: int = Field(default=0, ge=0)
    """Number of recordings, joined from training utterances, on which attention heads for word timestamps are chosen,
    such as 64. 0 chooses none."""
    parity: ParityTolerance = ParityTolerance()
    """Allowed differences from PyTorch. The stage fails if an artefact exceeds them."""

    @property
    def artefacts(self) -> list[ExportArtefact]:
        """All artefacts to write."""
        runtimes = ("onnx", "openvino", "tflite", "mobile", "ctranslate2", "compressed_tensors")
        return [
            ExportArtefact(f"{runtime}-{precision}", runtime, precision)
            for runtime in runtimes
            for precision in getattr(self, runtime)
        ]
