#!/usr/bin/env python3
"""How fast is the convolutional front-end, beside SpeechBrain's ConvolutionFrontEnd with the same weights?

    python scripts/benchmarks/frontend.py [--device cuda] [--json FILE]

Timed is the front-end of hparams/conmamba_small_ls100.yaml: two 3x3 convolutions of 64 and 32 channels with
stride 2, and the projection to d_model 144. It reads log-Mel frames of 64 utterances of 15 s, on a CPU of 4.
The forward pass is that of evaluation; forward and backward together have dropout. Both run in float32 and
under bfloat16 autocast, on a GPU as CUDA graphs.

Nothing is timed unless both sides' outputs and gradients agree in float32, or TF32 where a GPU has it. For
that SpeechBrain's module pads with zeros, as ours does. It takes all utterances to be equally long, as they
are here.
"""

from __future__ import annotations

from functools import partial

import torch
from benchmarking import compare, graphed, options_of, print_table, relative_error, require, write_json
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.nnet.CNN import Conv2d
from torch import nn

from hmamba_asr.modules.frontend import ConvSubsampling
from hmamba_asr.system.hardware import hardware, machine_name

N_MELS, CHANNELS, D_MODEL, DROPOUT = 80, (64, 32), 144, 0.1
FRAMES = 1501


class SpeechBrains(nn.Module):
    """SpeechBrain's convolutions with the weights of ours, and the same projection."""

    def __init__(self, ours: ConvSubsampling):
        super().__init__()
        self.convolutions = ConvolutionFrontEnd(
            input_shape=(None, None, N_MELS),
            num_blocks=2,
            num_layers_per_block=1,
            out_channels=CHANNELS,
            kernel_sizes=(3, 3),
            strides=(2, 2),
            residuals=(False, False),
            dropout=DROPOUT,
            conv_module=partial(Conv2d, padding_mode="constant"),
        )
        self.project, self.dropout = nn.Linear(ours.project.in_features, D_MODEL), nn.Dropout(DROPOUT)
        with torch.no_grad():
            for i, (conv, norm) in enumerate(zip(ours.convs, ours.norms, strict=True)):
                block = self.convolutions[f"convblock_{i}"].convs
                block["conv_0"].conv.weight.copy_(conv.weight.transpose(2, 3))  # it has bands before frames
                block["conv_0"].conv.bias.copy_(conv.bias)
                block["norm_0"].norm.weight.copy_(norm.weight.t())
                block["norm_0"].norm.bias.copy_(norm.bias.t())
            bands = norm.weight.shape[1]
            weight = ours.project.weight.unflatten(1, (CHANNELS[-1], bands))
            self.project.weight.copy_(weight.transpose(1, 2).flatten(1))  # its bands come first
            self.project.bias.copy_(ours.project.bias)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.dropout(self.project(self.convolutions(x).flatten(2))), None


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--pairs", type=int, help="timed pairs of runs (default: 7 on a CPU, 30 on a GPU)")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    ours = ConvSubsampling(n_mels=N_MELS, channels=list(CHANNELS), d_model=D_MODEL, dropout=DROPOUT).to(
        device
    )
    theirs = SpeechBrains(ours).to(device)
    x = torch.randn(64 if on_gpu else 4, FRAMES, N_MELS, device=device)
    lengths = torch.full((len(x),), FRAMES, device=device)
    weight = torch.randn(len(x), ours.output_lengths(FRAMES), D_MODEL, device=device)

    def run(model, autocast: bool, train: bool):
        with torch.set_grad_enabled(train), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            y = model(x, lengths)[0]
        return torch.autograd.grad((y * weight).sum(), list(model.parameters())) if train else y

    for model in (ours, theirs):
        model.eval()
    require("the output", relative_error(run(ours, False, False), run(theirs, False, False)), 2e-3)
    gradients = [
        dict(zip(dict(m.named_parameters()), run(m, False, True), strict=True)) for m in (ours, theirs)
    ]
    for i, layer in enumerate(("convs.0", "convs.1")):  # each depends on all that follows it
        pair = (
            gradients[0][f"{layer}.weight"],
            gradients[1][f"convolutions.convblock_{i}.convs.conv_0.conv.weight"],
        )
        require(f"the gradient of {layer}", relative_error(pair[0], pair[1].transpose(2, 3)), 3e-2)

    figures, rows = {"hardware": hardware(device), "torch": torch.__version__}, []
    for train in (False, True):
        for model in (ours, theirs):
            model.train(train)
        for autocast in (False, True):
            runs = [lambda m=m, a=autocast, t=train: run(m, a, t) for m in (ours, theirs)]
            if on_gpu:
                runs = [graphed(r) for r in runs]
            ratio = compare(*runs, device, pairs=options.pairs or (30 if on_gpu else 7))
            name = (
                f"{'forward and backward' if train else 'forward'}, {'bfloat16' if autocast else 'float32'}"
            )
            figures[name] = vars(ratio)
            rows.append([name, f"{1e3 * ratio.ours:.2f}", f"{1e3 * ratio.theirs:.2f}", str(ratio)])
    print(f"{machine_name(hardware(device))}, torch {torch.__version__}, {len(x)} x 15 s")
    print_table("Front-end", ["pass", "ours (ms)", "SpeechBrain (ms)", "ratio: median (min to max)"], rows)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
