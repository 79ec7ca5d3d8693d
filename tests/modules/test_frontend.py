"""The front-end: length formulas, independence of padding and batch mates, causality, degenerate audio."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hmamba_asr.lengths import valid_mask
from hmamba_asr.modules.frontend import ConvSubsampling, LogMelFeatures

SAMPLES = [4000, 9037, 1, 160, 2399]  # from one sample to a quarter of a second and more
N_MELS = 20


@pytest.fixture(scope="module")
def features():
    return LogMelFeatures(n_mels=N_MELS).eval()


def subsampling(causal=False, **options):
    torch.manual_seed(0)
    return ConvSubsampling(
        n_mels=N_MELS, channels=[6, 4], d_model=16, dropout=0.1, causal=causal, **options
    ).eval()


def padded_wavs(lengths, fill):
    """Noise bursts of different loudness, so that a neighbour or the padding could show."""
    torch.manual_seed(1)
    wavs = torch.randn(len(lengths), max(lengths) + 777) * torch.logspace(-3, 0, len(lengths)).unsqueeze(1)
    padding = ~valid_mask(torch.tensor(lengths), wavs.shape[1])
    wavs[padding] = (
        float("nan") if fill == "nan" else 0.0 if fill == "zeros" else 10 * torch.randn(int(padding.sum()))
    )
    return wavs


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 20000))
def test_output_lengths_are_the_frames_that_come_out(features, samples):
    out, frames = features(torch.randn(1, samples), torch.tensor([samples]))
    assert features.output_lengths(torch.tensor([samples])).tolist() == [out.shape[1]] == frames.tolist()
    for causal in (False, True):
        frontend = subsampling(causal)
        states, lengths = frontend(out, frames)
        assert lengths.tolist() == [states.shape[1]] == [frontend.output_lengths(out.shape[1])]
        assert frontend.output_lengths(frames).tolist() == lengths.tolist()


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_subsampling_lengths_for_other_kernels(kernel_size, causal):
    frontend = subsampling(causal, kernel_size=kernel_size)
    for frames in (1, 2, 3, 4, 7, 30):
        states, lengths = frontend(torch.randn(1, frames, N_MELS), torch.tensor([frames]))
        assert lengths.tolist() == [states.shape[1]] and states.shape[1] == math.ceil(frames / 4)


def test_empty_stays_empty(features):
    empty = torch.tensor([0])
    assert features.output_lengths(empty).tolist() == [0]
    assert subsampling().output_lengths(empty).tolist() == [0]
    assert subsampling().output_lengths(0) == 0
    out, frames = features(torch.randn(2, 800), torch.tensor([0, 800]))
    states, lengths = subsampling()(out, frames)
    assert (
        frames[0] == 0 == lengths[0] and not out[0].any() and not states[0].any() and states.isfinite().all()
    )


@pytest.mark.parametrize("fill", ["zeros", "noise", "nan"])
def test_features_do_not_depend_on_the_batch(features, fill):
    wavs = padded_wavs(SAMPLES, fill)
    batch, frames = features(wavs, torch.tensor(SAMPLES))
    for row, wav, samples, n in zip(batch, wavs, SAMPLES, frames.tolist(), strict=True):
        alone, _ = features(wav[None, :samples], torch.tensor([samples]))
        assert alone.shape[1] == n
        # With two or three frames a band's deviation can be tiny, and dividing by it magnifies the rounding
        # of the dB values.
        torch.testing.assert_close(row[:n], alone[0], rtol=0, atol=1e-5 if n > 3 else 1e-4)
        assert not row[n:].any()


def test_a_click_at_the_end_clips_nothing(features):
    """The frame past the end sees the last samples best: a limit below its level would raise the floor in a
    batch only."""
    torch.manual_seed(0)
    samples = 4159
    wavs = 3e-6 * torch.randn(2, 6000)
    wavs[0, samples - 1] = 1.0
    batch, frames = features(wavs, torch.tensor([samples, 6000]))
    alone, _ = features(wavs[:1, :samples], torch.tensor([samples]))
    torch.testing.assert_close(batch[:1, : frames[0]], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_subsampling_does_not_depend_on_the_batch(causal, dtype, tolerance):
    frontend = subsampling(causal).to(dtype)
    frames = torch.tensor([41, 40, 1, 2, 3, 17])
    x = torch.randn(len(frames), 50, N_MELS, dtype=dtype)
    x[3:] = x[3:].masked_fill(~valid_mask(frames[3:], 50).unsqueeze(-1), float("nan"))
    batch, lengths = frontend(x, frames)
    for row, features_row, t, n in zip(batch, x, frames.tolist(), lengths.tolist(), strict=True):
        alone, _ = frontend(features_row[None, :t], torch.tensor([t]))
        torch.testing.assert_close(row[:n], alone[0], rtol=0, atol=tolerance)
        assert not row[n:].any()


def plain_subsampling(frontend, x, lengths):
    """The same with the modules themselves, channels in front of the bands, everything padded."""
    half, x = frontend.kernel_size // 2, x.unsqueeze(2)
    for conv, norm in zip(frontend.convs, frontend.norms, strict=True):
        padding = ~valid_mask(lengths, x.shape[1])
        image = F.pad(
            x.masked_fill(padding[..., None, None], 0.0).transpose(1, 2), (half, half, *frontend.time_padding)
        )
        x = F.leaky_relu(norm(conv(image).transpose(1, 2)))
        lengths = torch.stack([torch.tensor(math.ceil(n / 2)) for n in lengths.tolist()])
    return frontend.project(x.flatten(2)).masked_fill(~valid_mask(lengths, x.shape[1]).unsqueeze(-1), 0.0)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_subsampling_is_the_plain_one(causal, kernel_size):
    """Output and every gradient; under autocast as close as bfloat16 can be."""
    frontend = subsampling(causal, kernel_size=kernel_size)
    with torch.no_grad():
        for norm in frontend.norms:
            norm.weight.add_(0.3 * torch.randn_like(norm.weight))
            norm.bias.add_(0.3 * torch.randn_like(norm.bias))
    lengths = torch.tensor([31, 18, 1])
    x, weight = torch.randn(3, 31, N_MELS), torch.randn(3, 8, 16)

    def results(run, dtype, autocast=False):
        frontend.to(dtype).zero_grad()
        given = x.to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = run(given)
        (y.to(dtype) * weight.to(dtype)).sum().backward()
        return [t.detach().double() for t in (y, given.grad, *(p.grad for p in frontend.parameters()))]

    runs = [
        lambda given: frontend(given, lengths)[0],
        lambda given: plain_subsampling(frontend, given, lengths),
    ]
    ours, exact = (results(run, torch.float64) for run in runs)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    half = results(runs[0], torch.float32, autocast=True)
    for i, (a, b) in enumerate(zip(half, exact, strict=True)):
        # Gradients jump where rounding takes a value across the ReLU's corner, in the plain one as well.
        assert (a - b).norm() / b.norm() <= (0.01 if i == 0 else 0.08)


def first_changed_frame(frontend, frame):
    """First encoder frame that notices a change of all feature frames from ``frame`` on."""
    x = torch.randn(1, 40, N_MELS)
    changed = x.clone()
    changed[:, frame:] += 1.0
    lengths = torch.tensor([40])
    differs = (frontend(x, lengths)[0] != frontend(changed, lengths)[0]).any(-1)[0]
    return int(differs.nonzero()[0])


def test_causal_subsampling_does_not_look_ahead():
    # Encoder frame j stands at feature frame 4j: a change at 4j + 1 must show from j + 1 on, at the earliest.
    for j in (0, 3, 7):
        assert first_changed_frame(subsampling(causal=True), 4 * j + 1) == j + 1
        assert first_changed_frame(subsampling(causal=True), 4 * j) == j
        assert first_changed_frame(subsampling(causal=False), 4 * j + 1) == j


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("samples", [1, 200, 8000])
def test_silence_and_constant_input_give_finite_features(features, value, samples):
    out, frames = features(torch.full((1, samples), value), torch.tensor([samples]))
    assert out.isfinite().all() and out.abs().max() < 100
    states, _ = subsampling()(out, frames)
    assert states.isfinite().all()


def test_digital_silence_is_zero(features):
    out, _ = features(torch.zeros(1, 8000), torch.tensor([8000]))
    assert out.abs().max() < 1e-3


@pytest.mark.parametrize("frames", [3, 7, 101, 999])
def test_rounding_of_a_constant_band_is_not_blown_up(features, frames):
    normalized = features.normalize(torch.full((1, frames, N_MELS), -13.37), torch.ones(1))
    assert normalized.abs().max() < 0.05


def test_features_are_normalised_over_the_utterance(features):
    out, frames = features(padded_wavs([16000, 9000], "noise"), torch.tensor([16000, 9000]))
    for row, n in zip(out, frames.tolist(), strict=True):
        torch.testing.assert_close(row[:n].mean(0), torch.zeros(N_MELS), rtol=0, atol=1e-4)
        torch.testing.assert_close(row[:n].std(0), torch.ones(N_MELS), rtol=0, atol=1e-2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_centres_are_the_middle_of_what_a_frame_sees(causal, kernel_size):
    """Probed: the feature frames that an encoder frame has a gradient for, away from the edges."""
    torch.manual_seed(0)
    frontend = ConvSubsampling(
        n_mels=20, channels=[3, 2], kernel_size=kernel_size, d_model=8, dropout=0.0, causal=causal
    ).double()
    x = torch.randn(1, 120, 20, dtype=torch.float64, requires_grad=True)
    out, _ = frontend(x, torch.tensor([120]))
    for frame in (9, 15):
        (grad,) = torch.autograd.grad(out[0, frame].sum(), x, retain_graph=True)
        seen = grad[0].abs().sum(1).nonzero().flatten()
        assert frontend.centres(frame) == (int(seen[0]) + int(seen[-1])) / 2
        assert torch.equal(frontend.centres(torch.tensor([frame])), torch.tensor([frontend.centres(frame)]))
    assert frontend.centres(10) - frontend.centres(9) == frontend.stride == 4


def test_the_time_of_an_encoder_frame_is_when_a_click_moves_it_most():
    """From samples on: a click at 0.6 s in noise; at 40 ms an encoder frame that is frame 15."""
    torch.manual_seed(0)
    features = LogMelFeatures(n_mels=20)
    frontend = ConvSubsampling(n_mels=20, channels=[6, 4], d_model=16, dropout=0.0)
    noise = 0.01 * torch.randn(1, 19200)
    click = noise.clone()
    click[0, 9600] += 3.0
    with torch.no_grad():
        without, with_click = (
            frontend(*features(wav, torch.tensor([19200])))[0][0] for wav in (noise, click)
        )
    frame = int((with_click - without).norm(dim=1).argmax())
    assert frontend.centres(frame) * features.hop_seconds == pytest.approx(0.6)
