"""Whisper's two convolutions with Winograd's fewer multiplications: exact, and an ablation that nothing ships.

    python -m tests.bench.winograd SPEECH VOCABULARY        one JSON line

A tile of outputs y is bilinear in the inputs d it reads and the taps g, so it can be had from products of sums,

    y = A ((G g) * (B d))                                                                                        (1)

with one multiplication a product and pair of channels, since G g is made once and A and B only add. As y_i = sum_k
g_k d_{i+k} is the transpose of multiplying polynomials s(x) = a(x) g(x), any way to get s turns into one to get y: if
s = C ((G g) * (E a)), then y = E^T ((G g) * (C^T d)). Products of polynomials come from their values (Toom and Cook):

conv1, stride 1, two outputs of three taps, F(2,3). s has degree 3 and is known from its values at 0, 1, -1 and its
leading coefficient, 4 products a0 g0, (a0 + a1)(g0 + g1 + g2), (a0 - a1)(g0 - g1 + g2), a1 g2; with v those values
s0 = v0, s1 = (v1 - v2) / 2 - v3, s2 = (v1 + v2) / 2 - v0, s3 = v3. Transposed, the halves moved from B into G, that is
`F23`: 4 multiplications for 6.

conv2, stride 2: y_t = g0 d_2t + g1 d_2t+1 + g2 d_2t+2. Its phases e_t = d_2t and o_t = d_2t+1 are convolutions of
stride 1, two taps g0 g2 over e and one tap g1 over o. Two outputs of two taps, F(2,2), need the values of s at 0, 1 and
its leading coefficient: a0 g0, (a0 + a1)(g0 + g2), a1 g2, with s1 = v1 - v0 - v2. One tap is a product an output, and
nothing is to be saved there. `POLYPHASE`: 3 + 2 = 5 multiplications for 6, no fraction anywhere.

Neither can be done with fewer: y is a matrix of taps times d whose 4 and 5 columns are independent over the constants,
and each of those needs a multiplication (Winograd 1980). Longer tiles save more, conv2 up to a third, with sums whose
growing coefficients cost accuracy.

`taps` is (1) with the convolution's own three products, B = G = 1: the same code without the saving. Int8 quantises
matrix products alone, so it leaves a direct convolution in float and takes both others. The stem is the encoder without
its layers; errors are those to torch in float64.

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
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.schema.export_section import Precision
from tests.bench.compress import clips
from tests.bench.encoders import encoder_times, exported, shallow

TEACHER = Path("recipes/demo/teacher")
SYSTEMS: dict[str, tuple[Precision, ...]] = {"onnx": ("fp32", "int8")}


@dataclass(frozen=True)
class Form:
    """Equation (1) for a kernel of three: signs of A [M, P] and B [P, N], and G [P, K]."""

    stride: int
    inputs: Sequence[Sequence[int]]
    taps: Sequence[Sequence[float]]
    outputs: Sequence[Sequence[int]]


F23 = Form(
    stride=1,
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    taps=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, 1)),
)
POLYPHASE = Form(
    stride=2,
    inputs=((1, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),
    taps=((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0)),
    outputs=((1, 1, 0, 1, 0), (0, 1, 1, 0, 1)),
)
EACH = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
FORMS = {"winograd": (F23, POLYPHASE), "taps": tuple(Form(stride, EACH, EACH, ((1, 1, 1),)) for stride in (1, 2))}
"""For conv1 and conv2."""


class Bilinear(nn.Module):
    """A convolution of three taps and one position of padding, by another form; [B, C, T] to [B, O, S] like it.

    Inside, channels come last: plain products [B, Q, C] @ [C, O] are what every quantiser knows.
    """

    def __init__(self, convolution: nn.Conv1d, form: Form):
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
        """The convolution; the last tile is padded where the outputs do not fill it."""
        form, length = self.form, x_BCT.shape[2]
        outputs = (length - 1) // form.stride + 1
        tiles, step = -(-outputs // len(form.outputs)), form.stride * len(form.outputs)
        reach = (tiles - 1) * step
        x_BTC = F.pad(x_BCT.transpose(1, 2), (0, 0, 1, reach + len(form.inputs[0]) - 1 - length))
        read = [x_BTC[:, first : first + reach + 1 : step] for first in range(len(form.inputs[0]))]
        products = [signed(signs, read) @ weight for signs, weight in zip(form.inputs, self.weights, strict=True)]
        y_BQMO = torch.stack([signed(signs, products) for signs in form.outputs], dim=2)
        return (y_BQMO.flatten(1, 2)[:, :outputs] + self.bias).transpose(1, 2)


def signed(signs: Sequence[int], parts: Sequence[Tensor]) -> Tensor:
    """Sum of the parts by their signs, 0 for none: no multiplication, whoever traces this."""
    plus, minus = ([part for sign, part in zip(signs, parts, strict=True) if sign == which] for which in (1, -1))
    return reduce(torch.sub, minus, reduce(torch.add, plus))


def multiplications(form: Form, channels: int, width: int, length: int) -> int:
    """Of one window: C inputs, O outputs, T positions."""
    tiles = -(-((length - 1) // form.stride + 1) // len(form.outputs))
    return len(form.inputs) * tiles * channels * width


def formed(model: WhisperForConditionalGeneration, forms: Sequence[Form]) -> WhisperForConditionalGeneration:
    """A copy with both convolutions in these forms."""
    made = copy.deepcopy(model)
    encoder = made.model.encoder
    encoder.conv1, encoder.conv2 = (
        Bilinear(convolution, form) for convolution, form in zip((encoder.conv1, encoder.conv2), forms, strict=True)
    )
    return made


def psnr_db(exact_BSD: np.ndarray, runtime: Runtime, mel_BFT: np.ndarray) -> float:
    """Of a runtime's encoder states."""
    (difference := RunningError()).add(exact_BSD, np.asarray(runtime.encode(mel_BFT).encoder_BSD))
    return round(difference.figures()["psnr_db"], 1)


def compared(
    model: WhisperForConditionalGeneration, source: Path, mels: Sequence[np.ndarray], threads: int, runs: int
) -> dict[str, Any]:
    """Times and errors of the direct form, Winograd's and taps, by system."""
    made = {"direct": model} | {name: formed(model, forms) for name, forms in FORMS.items()}
    exact_BSD = TorchRuntime(copy.deepcopy(model).double()).encode(mels[0]).encoder_BSD.numpy()
    with tempfile.TemporaryDirectory() as place:
        encoders = exported(made, dict.fromkeys(made, source), [], place, threads, SYSTEMS)
        for name, each in made.items():
            encoders[name]["torch-fp32"] = TorchRuntime(each)
        rows: dict[str, Any] = encoder_times(encoders, dict.fromkeys(made, mels), runs)
        for name, of in encoders.items():
            rows[name]["psnr_db"] = {system: psnr_db(exact_BSD, runtime, mels[0]) for system, runtime in of.items()}
    return rows


def saved(model: WhisperForConditionalGeneration) -> float:
    """Share of the multiplications of the model's encoder, as counted in a pass."""
    return round(1 - encoder_macs_m(formed(model, FORMS["winograd"])) / encoder_macs_m(model), 4)


def main() -> None:
    """The alnum teacher and two true shapes: encoder and stem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--runs", type=int, default=30, help="of each encoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="*", default=["tiny", "base"], choices=WHISPER_SHAPES)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    audio = [[file] for file, _ in clips(given.speech / "an4" / "test")]
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        folders = {"alnum teacher": TEACHER} | {name: Path(place) / name for name in given.shapes}
        for name in given.shapes:
            random_model(WHISPER_SHAPES[name], given.vocabulary, folders[name])
        for name, folder in folders.items():
            model = shallow(load_model(folder))
            stem = cut_layers(model, [], [0])
            mels = list(CalibrationAudio.spread(audio, model.config, 4, "bench:"))
            rows[name] = {
                "multiplications_saved": saved(model), "of_the_stem": saved(stem),
                "encoder": compared(model, folder, mels, given.threads, given.runs),
                "stem": compared(stem, folder, mels, given.threads, given.runs),
            }  # fmt: skip
    print(json.dumps({"bench": "winograd", "rows": rows, "runs": given.runs, "threads": given.threads}))


if __name__ == "__main__":
    main()
