"""From samples to encoder frames: log-Mel features and convolutional subsampling.

Each module knows how many frames it makes of its input (``output_lengths``). Shapes: B utterances, F feature
frames, T encoder frames.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import InputNormalization
from torch import Tensor, nn

from hmamba_asr.lengths import Length, conv_output_length, to_relative, zero_padding
from hmamba_asr.ops.norm import layer_norm

NO_DYNAMIC_RANGE_LIMIT = 1000.0  # dB, more than Fbank's own floor of 1e-10 leaves
Positions = TypeVar("Positions", float, Tensor)


class LogMelFeatures(nn.Module):
    """SpeechBrain's log-Mel filterbank, normalised per utterance and Mel band to mean 0 and variance 1.

    ``forward(wavs, lengths)``: samples (B, samples), lengths (B,) -> features (B, F, n_mels), lengths (B,) in
    frames. Windows are centred on multiples of the hop, so an utterance of n samples has 1 + n // hop frames.

    Parameters
    ----------
    sample_rate : int
        Samples per second.
    n_mels : int
        Number of Mel bands.
    n_fft : int
        Samples of the Fourier transform.
    win_length, hop_length : int
        Length of a window, and distance of two windows, in milliseconds.

    Attributes
    ----------
    hop_samples : int
        Samples between two frames.
    hop_seconds : float
        Seconds between two frames.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_mels: int = 80,
        n_fft: int = 512,
        win_length: int = 25,
        hop_length: int = 10,
    ):
        super().__init__()
        self.hop_samples = sample_rate * hop_length // 1000
        self.hop_seconds = self.hop_samples / sample_rate
        self.fbank = Fbank(
            sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels, win_length=win_length, hop_length=hop_length
        )
        # Fbank cuts everything 80 dB below the loudest frame of the padded row. That frame may lie past the
        # utterance's end, and features would depend on the padding.
        self.fbank.compute_fbanks.top_db = NO_DYNAMIC_RANGE_LIMIT
        # The large epsilon keeps constant input, such as digital silence, at zero. A small one would blow up
        # its rounding errors.
        self.normalize = InputNormalization(norm_type="sentence", epsilon=1e-3)

    def output_lengths(self, samples: Tensor) -> Tensor:
        """Return the number of frames for each number of samples (B,)."""
        return torch.where(samples > 0, 1 + samples // self.hop_samples, torch.zeros_like(samples))

    def forward(self, wavs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features = self.fbank(zero_padding(wavs, lengths))
        frames = self.output_lengths(lengths)
        features = self.normalize(features, to_relative(frames, features.shape[1])).to(features.dtype)
        return zero_padding(features, frames), frames


class ConvSubsampling(nn.Module):
    """Stride-2 convolutions over time and frequency, projected to ``d_model``; padding is zeroed before each.

    ``forward(x, lengths)``: features (B, F, n_mels), lengths (B,) -> encoder frames (B, T, d_model), lengths
    (B,). T is about F / 2^layers.

    The layers are those of SpeechBrain's ``ConvolutionFrontEnd``: 3x3 convolutions, layer norm, leaky ReLU.
    SpeechBrain's own module does not serve, because it reads reflected padding at an utterance's end and pads
    the frequency axis where it should be causal.

    Parameters
    ----------
    n_mels : int
        Number of Mel bands.
    channels : list of int
        Channels of each convolution.
    kernel_size : int
        Size of the convolutions' windows, in frames and in bands.
    d_model : int
        Width of the output.
    dropout : float
        Dropout probability.
    causal : bool
        Whether a frame sees only the feature frames up to its own.
    """

    def __init__(
        self,
        *,
        n_mels: int = 80,
        channels: list[int],
        kernel_size: int = 3,
        d_model: int,
        dropout: float,
        causal: bool = False,
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.time_padding = (kernel_size - 1, 0) if causal else (kernel_size // 2, kernel_size // 2)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        bands = n_mels
        for before, after in zip([1, *channels], channels, strict=False):
            self.convs.append(nn.Conv2d(before, after, kernel_size, stride=2))
            bands = self._after_stride_2(bands)
            self.norms.append(nn.LayerNorm([after, bands]))
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(channels[-1] * bands, d_model)

    @property
    def stride(self) -> int:
        """Number of feature frames per encoder frame."""
        return 2 ** len(self.convs)

    def centres(self, frames: Positions) -> Positions:
        """Return the feature frame in the middle of what each encoder frame sees; it may be a fraction."""
        for _ in self.convs:
            frames = 2 * frames + (self.kernel_size - 1) / 2 - self.time_padding[0]
        return frames

    def _after_stride_2(self, lengths: Length) -> Length:
        # Causal padding is kernel - 1 on the left, symmetric padding half of that on either side: the lengths
        # are the same.
        return conv_output_length(
            lengths, kernel_size=self.kernel_size, stride=2, padding=self.kernel_size // 2
        )

    def output_lengths(self, lengths: Length) -> Length:
        """Return the number of encoder frames for each number of feature frames."""
        for _ in self.convs:
            lengths = self._after_stride_2(lengths)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x.unsqueeze(-1)  # (B, F, bands, channels): what a norm reads together lies together in memory
        for conv, norm in zip(self.convs, self.norms, strict=True):
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.LayerNorm)
            x = self._convolve(conv, zero_padding(x, lengths))
            # In place: this is the largest activation, and LayerNorm's backward does not need its output.
            x = self.dropout(F.leaky_relu_(layer_norm(x, norm.weight.t(), norm.bias.t(), norm.eps)))
            lengths = self._after_stride_2(lengths)
        x = self.dropout(self.project(x.transpose(2, 3).flatten(2)))
        return zero_padding(x, lengths), lengths

    def _convolve(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Convolve over time and bands, (B, F, bands, in) -> (B, about F / 2, about bands / 2, out)."""
        half, size = self.kernel_size // 2, self.kernel_size
        if conv.in_channels == 1:  # as a matrix product: libraries' convolutions want the other memory layout
            image = F.pad(x.squeeze(-1), (half, half, *self.time_padding))
            windows = image.unfold(1, size, 2).unfold(2, size, 2)
            return F.linear(windows.flatten(3), conv.weight.flatten(1), conv.bias)
        image = x.permute(0, 3, 1, 2)
        if self.time_padding == (half, half):
            return F.conv2d(image, conv.weight, conv.bias, conv.stride, padding=half).permute(0, 2, 3, 1)
        return conv(F.pad(image, (half, half, *self.time_padding))).permute(0, 2, 3, 1)
