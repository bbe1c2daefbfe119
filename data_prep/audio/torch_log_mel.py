"""Batched log-mel on the training device, equal to `WhisperFeatureExtractor`.

B batch, N samples, F mel bins, T frames, K frequency bins.
"""

import torch

from eval.runtimes.log_mel import FLOOR, HOP, N_FFT, mel_filters


class LogMel(torch.nn.Module):
    """Samples [B, N] at 16 kHz, zero-padded to the model's window, to log-mel [B, F, T] float32."""

    window: torch.Tensor
    filters_KF: torch.Tensor

    def __init__(self, bins: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("filters_KF", torch.from_numpy(mel_filters(bins)), persistent=False)

    @torch.no_grad()
    def forward(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """The last frame of the transform is dropped, as in the reference."""
        spectrum_BKT = torch.stft(samples_BN, N_FFT, HOP, window=self.window, return_complex=True)[..., :-1]
        power_BTK = spectrum_BKT.abs().square().transpose(1, 2)
        log_BFT = (power_BTK @ self.filters_KF).clamp_min(FLOOR).log10().transpose(1, 2)
        log_BFT = torch.maximum(log_BFT, log_BFT.amax(dim=(1, 2), keepdim=True) - 8.0)
        return ((log_BFT + 4.0) / 4.0).contiguous()
