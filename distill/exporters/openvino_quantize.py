"""Int8 for OpenVINO: an encoder that computes in int8, a decoder that stores its weights in int8.

The encoder is quantised after training by NNCF: weights by channel, activations with ranges seen on training audio.
SmoothQuant (Xiao et al. 2022, arXiv 2211.10438) first moves a share `alpha` of the outliers of the activations into the
weights. The best share differs from model to model, so it is chosen by the error of the encoder's states on clips of
the same training audio that the ranges were not taken from; `quantization.json` holds the grid.

The decoder computes in float32. Measured with OpenVINO 2026.4 and NNCF 3.4, 1 thread of an AMD EPYC (AVX512_VNNI) that
others shared, 2 decoder layers; ms a step, least seen / dB of the logits against torch, teacher forced:

                                       alnum student     whisper-tiny's shape, random weights
    float32                            0.31 / 145.2      6.35 / 134.7
    weights int8, symmetric            0.28 / 58.8       2.33 / 49.0
    weights int8, asymmetric (kept)    0.29 / 60.0       2.30 / 49.4
    weights and activations int8       0.39 / 51.3       3.06 / 46.5

The encoder, ms a window, least seen: alnum's 19.4 in float32, 10.6 to 13.2 with int8 weights alone, 7.4 to 8.6 so (both
of NNCF's presets); whisper-tiny's 562 in float32, 273 in bfloat16, 206 so.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.calibration import CalibrationAudio
from distill.exporters.export_source import ExportSource

if TYPE_CHECKING:
    import openvino


CALIBRATION_CLIPS, HELD_OUT_CLIPS = 32, 12


def quantize_openvino(
    encoder: "openvino.Model", decoder: "openvino.Model", mels: list[np.ndarray], alphas: Sequence[float | None]
) -> "tuple[openvino.Model, openvino.Model, dict[str, Any]]":
    """Both models in int8, the given ones left as they are, and what was chosen from what; log-mels [1, F, T].

    `alphas` are the shares of SmoothQuant to try; None leaves it out.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    held = max(1, len(mels) * HELD_OUT_CLIPS // (CALIBRATION_CLIPS + HELD_OUT_CLIPS))
    calibration, held_out = mels[held:] or mels, mels[:held]
    expected = _states(encoder, held_out)
    candidates = {alpha: _quantized(encoder, calibration, alpha) for alpha in alphas}
    psnr_db = {alpha: _psnr_db(expected, _states(model, held_out)) for alpha, model in candidates.items()}
    chosen = max(psnr_db, key=lambda alpha: psnr_db[alpha])
    with _silent():
        decoder = nncf.compress_weights(decoder.clone(), mode=nncf.CompressWeightsMode.INT8_ASYM)
    return (
        candidates[chosen],
        decoder,
        {
            "encoder": {
                "method": "NNCF post-training quantisation, weights and activations int8",
                "smooth_quant_alpha": chosen,
                "grid": [{"smooth_quant_alpha": alpha, "psnr_db": round(value, 2)} for alpha, value in psnr_db.items()],
                "calibration_clips": len(calibration),
                "held_out_clips": len(held_out),
            },
            "decoder": {"method": "NNCF weight compression, int8 asymmetric, embedding and tied head included"},
        },
    )


def calibration_mels(student: ExportSource) -> list[np.ndarray]:
    """Log-mels [1, F, T] of clips spread evenly over the training audio. Raises UserError where there is none."""
    clips = CALIBRATION_CLIPS + HELD_OUT_CLIPS
    return list(CalibrationAudio.spread(student.calibration, student.model.config, clips, "export.openvino: int8"))


def _quantized(encoder: "openvino.Model", mels: list[np.ndarray], alpha: float | None) -> "openvino.Model":
    import nncf

    # Convolutions stay out of SmoothQuant, as in NNCF's default: their input is the log-mel, bounded already.
    shares = nncf.AdvancedSmoothQuantParameters(matmul=-1 if alpha is None else alpha, convolution=-1)
    with _silent():
        return nncf.quantize(
            encoder.clone(),
            nncf.Dataset(mels),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(mels),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=shares),
        )


def _states(encoder: "openvino.Model", mels: list[np.ndarray]) -> list[np.ndarray]:
    import openvino

    compiled = openvino.compile_model(encoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [compiled([mel_1FT])[0].copy() for mel_1FT in mels]


def _psnr_db(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """20 log10(largest expected value / root mean square error), dB."""
    square = np.mean([np.mean((one - other) ** 2) for one, other in zip(expected, found, strict=True)])
    return float(20 * np.log10(max(np.abs(one).max() for one in expected) / np.sqrt(square)))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    # NNCF draws four progress bars a model on stdout, which belongs to the stage's own result.
    with contextlib.redirect_stdout(io.StringIO()):
        yield
