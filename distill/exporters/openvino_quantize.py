"""Int8 for OpenVINO: an encoder that computes in int8, and a decoder that stores its weights in int8.

The encoder is quantised after training with NNCF: weights per channel, and activations with ranges measured on training
audio. SmoothQuant (Xiao et al. 2022, arXiv 2211.10438) first moves part of the activations' outliers into the weights,
as much as its parameter `alpha` says. The best alpha differs between models. It is therefore chosen by the error of the
encoder states on held-out clips: training audio that was not used to measure the ranges. `quantization.json` records
the error of every alpha that was tried.

The decoder computes in float32. Measured with OpenVINO 2026.4 and NNCF 3.4, 1 thread of a shared AMD EPYC
(AVX512_VNNI), 2 decoder layers; shortest ms per step / PSNR of the logits against torch in dB, teacher forced:

                                       alnum student     whisper-tiny's shape, random weights
    float32                            0.31 / 145.2      6.35 / 134.7
    weights int8, symmetric            0.28 / 58.8       2.33 / 49.0
    weights int8, asymmetric (used)    0.29 / 60.0       2.30 / 49.4
    weights and activations int8       0.39 / 51.3       3.06 / 46.5

The encoder, shortest ms per window: alnum takes 19.4 in float32, 10.6 to 13.2 with only the weights in int8, and 7.4 to
8.6 in this form (with either of NNCF's presets); whisper-tiny takes 562 in float32, 273 in bfloat16, and 206 in this
form.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.calibration import CalibrationAudio
from distill.exporters.export_source import ExportSource

if TYPE_CHECKING:
    import openvino


CALIBRATION_CLIPS, HELD_OUT_CLIPS = 32, 12


@dataclass(frozen=True)
class OpenVinoInt8:
    """Encoder and decoder in int8, and how the encoder's SmoothQuant alpha was chosen."""

    encoder: "openvino.Model"
    decoder: "openvino.Model"
    alpha: float | None
    """The chosen alpha; None without SmoothQuant."""
    psnr_db: Mapping[float | None, float]
    """PSNR of the encoder states on the held-out clips for each alpha that was tried, dB."""
    calibration_clips: int
    held_out_clips: int

    def report(self) -> dict[str, Any]:
        """Return the content of quantization.json."""
        return {
            "encoder": {
                "method": "NNCF post-training quantisation, weights and activations int8",
                "smooth_quant_alpha": self.alpha,
                "grid": [
                    {"smooth_quant_alpha": alpha, "psnr_db": round(value, 2)} for alpha, value in self.psnr_db.items()
                ],
                "calibration_clips": self.calibration_clips,
                "held_out_clips": self.held_out_clips,
            },
            "decoder": {"method": "NNCF weight compression, int8 asymmetric, embedding and tied head included"},
        }


def quantize_openvino(
    encoder: "openvino.Model", decoder: "openvino.Model", mels: list[np.ndarray], alphas: Sequence[float | None]
) -> OpenVinoInt8:
    """Quantise copies of both models to int8.

    `mels` are log-mel spectrograms [1, F, T], divided into calibration and held-out clips. `alphas` are the SmoothQuant
    parameters to try; None stands for no SmoothQuant.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    held_out_count = max(1, len(mels) * HELD_OUT_CLIPS // (CALIBRATION_CLIPS + HELD_OUT_CLIPS))
    calibration, held_out = mels[held_out_count:] or mels, mels[:held_out_count]
    expected = _encoder_states(encoder, held_out)
    candidates = {alpha: _quantize_encoder(encoder, calibration, alpha) for alpha in alphas}
    psnr_db = {alpha: _psnr_db(expected, _encoder_states(model, held_out)) for alpha, model in candidates.items()}
    best_alpha = max(psnr_db, key=lambda alpha: psnr_db[alpha])
    with _silence_stdout():
        decoder = nncf.compress_weights(decoder.clone(), mode=nncf.CompressWeightsMode.INT8_ASYM)
    return OpenVinoInt8(candidates[best_alpha], decoder, best_alpha, psnr_db, len(calibration), len(held_out))


def calibration_mels(student: ExportSource) -> list[np.ndarray]:
    """Return log-mels [1, F, T] of clips spread evenly over the training audio. Raises UserError if there is none."""
    clips = CALIBRATION_CLIPS + HELD_OUT_CLIPS
    return list(CalibrationAudio.spread(student.calibration, student.model.config, clips, "export.openvino: int8"))


def _quantize_encoder(encoder: "openvino.Model", mels: list[np.ndarray], alpha: float | None) -> "openvino.Model":
    import nncf

    # Convolutions are excluded from SmoothQuant, as by NNCF's default: their input, the log-mel, is already bounded.
    smooth_quant = nncf.AdvancedSmoothQuantParameters(matmul=-1 if alpha is None else alpha, convolution=-1)
    with _silence_stdout():
        return nncf.quantize(
            encoder.clone(),
            nncf.Dataset(mels),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(mels),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth_quant),
        )


def _encoder_states(encoder: "openvino.Model", mels: list[np.ndarray]) -> list[np.ndarray]:
    import openvino

    compiled = openvino.compile_model(encoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [compiled([mel_1FT])[0].copy() for mel_1FT in mels]


def _psnr_db(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Return 20 log10(largest expected value / root mean square error), dB."""
    square_error = np.mean([np.mean((a - b) ** 2) for a, b in zip(expected, found, strict=True)])
    return float(20 * np.log10(max(np.abs(a).max() for a in expected) / np.sqrt(square_error)))


@contextlib.contextmanager
def _silence_stdout() -> Iterator[None]:
    # NNCF draws four progress bars per model on stdout, which is reserved for the stage's own result.
    with contextlib.redirect_stdout(io.StringIO()):
        yield
