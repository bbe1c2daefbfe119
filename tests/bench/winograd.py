"""Compute Whisper's two convolutions with fewer multiplications, by Winograd's method: exact, measured, not shipped.

    python -m tests.bench.winograd SPEECH VOCABULARY        one JSON line

A tile of outputs y is bilinear in the inputs d that it reads and the taps g. It can therefore be computed from products
of sums,

    y = A ((G g) * (B d))                                                                                        (1)

with one multiplication per product and pair of channels, because G g is computed once and A and B only add. y_i = sum_k
g_k d_{i+k} is the transpose of the multiplication of two polynomials, s(x) = a(x) g(x). Every way to compute s hence
gives a way to compute y: if s = C ((G g) * (E a)), then y = E^T ((G g) * (C^T d)). A product of polynomials can be
computed from its values at some points (Toom and Cook):

conv1, stride 1, two outputs of three taps, F(2,3). s has degree 3 and is determined by its values at 0, 1, -1 and its
leading coefficient, which are 4 products: a0 g0, (a0 + a1)(g0 + g1 + g2), (a0 - a1)(g0 - g1 + g2), a1 g2. With v for
these values, s0 = v0, s1 = (v1 - v2) / 2 - v3, s2 = (v1 + v2) / 2 - v0, s3 = v3. Transposed, and with the factors 1/2
moved from B to G, this is `F23`: 4 multiplications instead of 6.

conv2, stride 2: y_t = g0 d_2t + g1 d_2t+1 + g2 d_2t+2. Its phases e_t = d_2t and o_t = d_2t+1 are convolved with stride
1: e with the two taps g0 and g2, o with the single tap g1. Two outputs of two taps, F(2,2), need the values of s at 0
and 1 and its leading coefficient: a0 g0, (a0 + a1)(g0 + g2), a1 g2, with s1 = v1 - v0 - v2. A single tap needs one
product per output, and nothing can be saved. `POLYPHASE`: 3 + 2 = 5 multiplications instead of 6, without fractions.

Neither is possible with fewer multiplications: y is a matrix of taps times d, whose 4 and 5 columns are independent
over the constants, and each of them needs a multiplication (Winograd 1980). Longer tiles save more, for conv2 up to a
third, but the larger coefficients of their sums cost accuracy.

`taps` is (1) with the convolution's own three products, B = G = 1: the same code without the saving. int8 quantises
matrix products only, so that it leaves a direct convolution in floating point but quantises both other forms. The stem
is the encoder without its layers. Errors are relative to torch in float64.

B batch, C channels in, O out, K taps, T inputs, S outputs (of conv2 and the encoder, width D), M outputs
of a tile, N its inputs, P its products, Q tiles, F mel bins.
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from distill.data.calibration import CalibrationAudio
from distill.exporters.parity import RunningError
from distill.models.cutting import cut_layers
from distill.models.model_size import encoder_macs_m
from distill.models.random_weights import random_model
from eval.runtimes.interface import Runtime
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import run_main
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.schema.export_section import Precision
from tests.bench.compress import read_clips
from tests.bench.encoders import export_and_open, time_encoders, with_one_decoder_layer

TEACHER = Path("recipes/demo/teacher")
SYSTEMS: dict[str, tuple[Precision, ...]] = {"onnx": ("fp32", "int8")}


@dataclass(frozen=True)
class BilinearForm:
    """The matrices of equation (1) for a kernel of three taps.

    `outputs` are the signs of A [M, P], `inputs` those of B [P, N], and `taps` is G [P, K].
    """

    stride: int
    inputs: Sequence[Sequence[int]]
    taps: Sequence[Sequence[float]]
    outputs: Sequence[Sequence[int]]


F23 = BilinearForm(
    stride=1,
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    taps=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, 1)),
)
POLYPHASE = BilinearForm(
    stride=2,
    inputs=((1, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),
    taps=((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0)),
    outputs=((1, 1, 0, 1, 0), (0, 1, 1, 0, 1)),
)
IDENTITY = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
FORMS = {
    "winograd": (F23, POLYPHASE),
    "taps": tuple(BilinearForm(stride, IDENTITY, IDENTITY, ((1, 1, 1),)) for stride in (1, 2)),
}
"""The forms of conv1 and conv2 by name."""


class BilinearConvolution(nn.Module):
    """A convolution with three taps and padding 1, computed by a bilinear form; maps [B, C, T] to [B, O, S].

    Channels come last internally, because every quantiser supports plain products [B, Q, C] @ [C, O].
    """

    def __init__(self, convolution: nn.Conv1d, form: BilinearForm):
        super().__init__()
        assert convolution.kernel_size == (3,)
        assert convolution.padding == (1,)
        assert convolution.stride == (form.stride,)
        assert convolution.bias is not None
        self.form, self.stride, self.bias = form, convolution.stride, convolution.bias
        weight_OCK = convolution.weight.detach().double()
        weights_PCO = torch.einsum("pk,ock->pco", torch.tensor(form.taps, dtype=torch.float64), weight_OCK)
        self.weights = nn.ParameterList(weight_CO.to(convolution.weight.dtype) for weight_CO in weights_PCO)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Apply the convolution; the last tile is padded if the outputs do not fill it."""
        form, length = self.form, x_BCT.shape[2]
        outputs = (length - 1) // form.stride + 1
        tiles, step = -(-outputs // len(form.outputs)), form.stride * len(form.outputs)
        reach = (tiles - 1) * step
        x_BTC = F.pad(x_BCT.transpose(1, 2), (0, 0, 1, reach + len(form.inputs[0]) - 1 - length))
        tile_inputs_NBQC = [x_BTC[:, first : first + reach + 1 : step] for first in range(len(form.inputs[0]))]
        products = [
            signed_sum(signs, tile_inputs_NBQC) @ weight
            for signs, weight in zip(form.inputs, self.weights, strict=True)
        ]
        y_BQMO = torch.stack([signed_sum(signs, products) for signs in form.outputs], dim=2)
        return (y_BQMO.flatten(1, 2)[:, :outputs] + self.bias).transpose(1, 2)


def signed_sum(signs: Sequence[int], terms: Sequence[Tensor]) -> Tensor:
    """Add and subtract terms by their signs, leaving out those with sign 0; no tracer sees a multiplication."""
    plus, minus = ([term for sign, term in zip(signs, terms, strict=True) if sign == wanted] for wanted in (1, -1))
    return reduce(torch.sub, minus, reduce(torch.add, plus))


def multiplications(form: BilinearForm, channels: int, width: int, length: int) -> int:
    """Return the multiplications for one window, from C = `channels` to O = `width` channels, T = `length`."""
    tiles = -(-((length - 1) // form.stride + 1) // len(form.outputs))
    return len(form.inputs) * tiles * channels * width


def with_convolution_forms(
    model: WhisperForConditionalGeneration, forms: Sequence[BilinearForm]
) -> WhisperForConditionalGeneration:
    """Return a copy whose two convolutions are computed by these forms."""
    converted = copy.deepcopy(model)
    encoder = converted.model.encoder
    encoder.conv1, encoder.conv2 = (
        BilinearConvolution(convolution, form)
        for convolution, form in zip((encoder.conv1, encoder.conv2), forms, strict=True)
    )
    return converted


def encoder_psnr_db(exact_BSD: np.ndarray, runtime: Runtime, mel_BFT: np.ndarray) -> float:
    """Return the PSNR of a runtime's encoder states, dB."""
    (difference := RunningError()).add(exact_BSD, np.asarray(runtime.encode(mel_BFT).encoder_BSD))
    return round(difference.result().psnr_db, 1)


def compare_forms(
    model: WhisperForConditionalGeneration, source: Path, mels: Sequence[np.ndarray], threads: int, runs: int
) -> dict[str, Any]:
    """Return times and errors of the direct convolutions, Winograd's and `taps`, by system."""
    models = {"direct": model} | {name: with_convolution_forms(model, forms) for name, forms in FORMS.items()}
    exact_BSD = TorchRuntime(copy.deepcopy(model).double()).encode(mels[0]).encoder_BSD.numpy()
    with tempfile.TemporaryDirectory() as folder:
        encoders = export_and_open(models, dict.fromkeys(models, source), [], Path(folder), threads, SYSTEMS)
        for name, converted in models.items():
            encoders[name]["torch-fp32"] = TorchRuntime(converted)
        rows: dict[str, Any] = time_encoders(encoders, dict.fromkeys(models, mels), runs)
        for name, runtimes in encoders.items():
            rows[name]["psnr_db"] = {
                system: encoder_psnr_db(exact_BSD, runtime, mels[0]) for system, runtime in runtimes.items()
            }
    return rows


def share_saved(model: WhisperForConditionalGeneration) -> float:
    """Return the share of the encoder's multiplications that Winograd's forms save, counted in a pass."""
    return round(1 - encoder_macs_m(with_convolution_forms(model, FORMS["winograd"])) / encoder_macs_m(model), 4)


def main() -> None:
    """Compare the forms in the encoder and in the stem of the alnum teacher and of two true shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each encoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="*", default=["tiny", "base"], choices=WHISPER_SHAPES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    audio = [[file] for file, _ in read_clips(args.speech / "an4" / "test")]
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"alnum teacher": TEACHER} | {name: Path(scratch) / name for name in args.shapes}
        for name in args.shapes:
            random_model(WHISPER_SHAPES[name], args.vocabulary, folders[name])
        for name, folder in folders.items():
            model = with_one_decoder_layer(load_model(folder))
            stem = cut_layers(model, [], [0])
            mels = list(CalibrationAudio.spread(audio, model.config, 4, "bench:"))
            rows[name] = {
                "multiplications_saved": share_saved(model), "of_the_stem": share_saved(stem),
                "encoder": compare_forms(model, folder, mels, args.threads, args.runs),
                "stem": compare_forms(stem, folder, mels, args.threads, args.runs),
            }  # fmt: skip
    print(json.dumps({"bench": "winograd", "rows": rows, "runs": args.runs, "threads": args.threads}))


if __name__ == "__main__":
    run_main(main)
