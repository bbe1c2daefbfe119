"""Log-mel features of a whole batch, computed by torch on the training device.

`eval.runtimes.log_mel` computes the same features in numpy. Both are needed: training and labelling transform batches
on a GPU without leaving it, while a deployed runtime must work without torch. Both equal
`transformers.WhisperFeatureExtractor`; their tests compare them with it.

Axes: B batch, N samples, F mel bins, T frames, K frequency bins.
"""

import torch

from eval.runtimes.log_mel import FLOOR, HOP, N_FFT, mel_filters


class LogMel(torch.nn.Module):
    """Compute log-mel features [B, F, T], float32, of samples [B, N] at 16 kHz, zero-padded to the model's window.

    Args:
        bins: Number of mel bins, 80 or 128.
    """

    window: torch.Tensor
    filters_KF: torch.Tensor

    def __init__(self, bins: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("filters_KF", torch.from_numpy(mel_filters(bins)), persistent=False)

    @torch.no_grad()
    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """Return the features. The last frame of the transform is dropped, as in OpenAI's implementation."""
        spectrum_BKT = torch.stft(samples_BN, N_FFT, HOP, window=self.window, return_complex=True)[..., :-1]
        power_BTK = spectrum_BKT.abs().square().transpose(1, 2)
        log_BFT = (power_BTK @ self.filters_KF).clamp_min(FLOOR).log10().transpose(1, 2)
        log_BFT = torch.maximum(log_BFT, log_BFT.amax(dim=(1, 2), keepdim=True) - 8.0)
        return ((log_BFT + 4.0) / 4.0).contiguous()
