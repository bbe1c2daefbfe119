"""Winograd's forms compute the convolution exactly, with the number of multiplications that they claim."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill.exporters.onnx_export import export_onnx
from distill.models.cutting import cut_layers
from distill.models.model_size import encoder_macs_m
from eval.runtimes.onnx_runtime import OnnxRuntime
from tests.bench.winograd import (
    F23,
    FORMS,
    POLYPHASE,
    BilinearConvolution,
    BilinearForm,
    multiplications,
    with_convolution_forms,
)
from tests.unit.models import demo_student, psnr, random_mel, random_whisper

pytestmark = pytest.mark.usefixtures("one_thread")

ALL_FORMS = [form for forms in FORMS.values() for form in forms]


@pytest.mark.parametrize("form", ALL_FORMS)
def test_the_forms_are_algebraically_the_convolution(form: BilinearForm) -> None:
    # y_m = sum A[m,p] B[p,n] G[p,k] d_n g_k must contain d_n g_k once if n = stride m + k, and otherwise not at all.
    found = np.einsum("mp,pn,pk->mnk", np.array(form.outputs), np.array(form.inputs), np.array(form.taps))
    m, n, k = np.indices(found.shape)
    np.testing.assert_array_equal(found, n == form.stride * m + k)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ALL_FORMS), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 33),
    st.integers(0, 99),
)  # fmt: skip
def test_the_forms_equal_torch_in_float64(
    form: BilinearForm, batch: int, channels: int, width: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    direct = nn.Conv1d(channels, width, 3, stride=form.stride, padding=1, dtype=torch.float64)
    x_BCT = torch.randn(batch, channels, length, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(BilinearConvolution(direct, form)(x_BCT), direct(x_BCT), atol=1e-12, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ALL_FORMS), st.integers(1, 9), st.integers(1, 9), st.integers(1, 33))
def test_multiplications_are_those_counted_in_a_pass(
    form: BilinearForm, channels: int, width: int, length: int
) -> None:
    module = BilinearConvolution(nn.Conv1d(channels, width, 3, stride=form.stride, padding=1), form)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.ones(1, channels, length))
    assert counter.get_total_flops() == 2 * multiplications(form, channels, width, length)


@given(st.integers(1, 50))
def test_whole_tiles_save_a_third_and_a_sixth(tiles: int) -> None:
    (stride_1, stride_2), length = FORMS["taps"], 2 * tiles
    assert multiplications(F23, 5, 7, length) * 3 == multiplications(stride_1, 5, 7, length) * 2
    assert multiplications(POLYPHASE, 5, 7, 2 * length) * 6 == multiplications(stride_2, 5, 7, 2 * length) * 5


def test_the_encoder_saves_what_its_convolutions_save() -> None:
    model = demo_student()
    # conv1: 80 to 192 channels over 700 frames, a third; conv2: 192 to 192 over 350 positions, a sixth.
    saved = 80 * 192 * 700 + 192 * 192 * 350 / 2
    found = encoder_macs_m(model) - encoder_macs_m(with_convolution_forms(model, FORMS["winograd"]))
    assert found == pytest.approx(saved / 1e6, abs=0.2)


@pytest.mark.parametrize("forms", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 100), ("int8", 25)])
def test_onnx_runs_the_forms_in_float_and_int8(
    forms: tuple[BilinearForm, BilinearForm], precision: str, least_db: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import onnx

    folder, model = tmp_path_factory.mktemp("winograd"), cut_layers(random_whisper(), [], [0])
    (encoder, _) = export_onnx(with_convolution_forms(model, forms), folder, [precision])[precision]  # type: ignore[list-item, index]
    kinds = [node.op_type for node in onnx.load(encoder).graph.node]
    assert "Conv" not in kinds
    assert kinds.count("MatMulInteger") == (sum(len(form.inputs) for form in forms) if precision == "int8" else 0)
    mel_BFT = random_mel(model, 2)
    with torch.no_grad():
        expected = model.model.encoder(torch.from_numpy(mel_BFT)).last_hidden_state.numpy()
    assert psnr(expected, OnnxRuntime(folder, precision, 1).encode(mel_BFT).encoder_BSD) > least_db
