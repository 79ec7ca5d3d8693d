"""From samples to encoder frames: log-Mel features and convolutional subsampling, each owning its length
formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import InputNormalization
from torch import Tensor, nn

from hmamba_asr.lengths import conv_output_length, to_relative, zero_padding
from hmamba_asr.ops.norm import layer_norm

NO_DYNAMIC_RANGE_LIMIT = 1000.0  # dB, beyond what Fbank's own floor of 1e-10 allows


class LogMelFeatures(nn.Module):
    """SpeechBrain's log-Mel filterbank, normalised per utterance and Mel band to mean 0 and variance 1.

    ``forward(wavs, lengths)``: wavs (B, S), lengths (B,) in samples -> features (B, T, n_mels), lengths (B,)
    in frames, T = 1 + S // hop. Windows are centred on multiples of the hop, so an utterance of n samples has
    1 + n // hop frames. ``hop_length`` and ``win_length`` are in milliseconds.
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
        # Fbank cuts everything 80 dB below the loudest frame of the padded row, and that frame can be the one
        # past the utterance's end: features would depend on the padding.
        self.fbank.compute_fbanks.top_db = NO_DYNAMIC_RANGE_LIMIT
        # The large epsilon keeps constant input (digital silence) at zero instead of blowing up its rounding
        # errors.
        self.normalize = InputNormalization(norm_type="sentence", epsilon=1e-3)

    def output_lengths(self, samples: Tensor) -> Tensor:
        """Frames for each count of samples (B,)."""
        return torch.where(samples > 0, 1 + samples // self.hop_samples, torch.zeros_like(samples))

    def forward(self, wavs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features = self.fbank(zero_padding(wavs, lengths))
        frames = self.output_lengths(lengths)
        features = self.normalize(features, to_relative(frames, features.shape[1])).to(features.dtype)
        return zero_padding(features, frames), frames


class ConvSubsampling(nn.Module):
    """Stride-2 convolutions over time and frequency, masked between the layers, projected to ``d_model``.

    ``forward(x, lengths)``: x (B, T, n_mels), lengths (B,) -> (B, T', d_model), lengths (B,), T' about T /
    2^layers. With ``causal`` a frame sees the feature frames up to its own only.

    The shape is that of SpeechBrain's ``ConvolutionFrontEnd`` (3x3 convolutions, layer norm, leaky ReLU),
    which cannot be used itself: it reads reflected padding at an utterance's end, and its causal padding is
    on the frequency axis.
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
            bands = self._halved(bands)
            self.norms.append(nn.LayerNorm([after, bands]))
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(channels[-1] * bands, d_model)

    @property
    def stride(self) -> int:
        """Feature frames for each encoder frame."""
        return 2 ** len(self.convs)

    def centres(self, frames):
        """Feature frame, not always a whole one, in the middle of what each of these encoder frames sees; an
        int or a tensor."""
        for _ in self.convs:
            frames = 2 * frames + (self.kernel_size - 1) / 2 - self.time_padding[0]
        return frames

    def _halved(self, lengths):
        # Causal padding is kernel - 1 on the left, symmetric padding half of it on either side: the same
        # length.
        return conv_output_length(
            lengths, kernel_size=self.kernel_size, stride=2, padding=self.kernel_size // 2
        )

    def output_lengths(self, lengths):
        """Encoder frames for each count of feature frames; an int or an integer tensor."""
        for _ in self.convs:
            lengths = self._halved(lengths)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x.unsqueeze(-1)  # (B, T, bands, channels): what a norm takes together lies together
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self._convolve(conv, zero_padding(x, lengths))
            # In place: the norm does not need its output again, and these are the largest tensors of a
            # recogniser.
            x = self.dropout(F.leaky_relu_(layer_norm(x, norm.weight.t(), norm.bias.t(), norm.eps)))
            lengths = self._halved(lengths)
        x = self.dropout(self.project(x.transpose(2, 3).flatten(2)))
        return zero_padding(x, lengths), lengths

    def _convolve(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """(B, T, bands, channels in) -> (B, T', bands', channels out)."""
        half, size = self.kernel_size // 2, self.kernel_size
        if (
            conv.in_channels == 1
        ):  # a matrix product: libraries' convolutions read such images in the other layout
            windows = (
                F.pad(x.squeeze(-1), (half, half, *self.time_padding)).unfold(1, size, 2).unfold(2, size, 2)
            )
            return F.linear(windows.flatten(3), conv.weight.flatten(1), conv.bias)
        image = x.permute(0, 3, 1, 2)
        if self.time_padding == (half, half):
            return F.conv2d(image, conv.weight, conv.bias, conv.stride, padding=half).permute(0, 2, 3, 1)
        return conv(F.pad(image, (half, half, *self.time_padding))).permute(0, 2, 3, 1)
