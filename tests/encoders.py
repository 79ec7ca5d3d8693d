"""Small encoders of every kind, for the tests that hold them to their contract."""

import torch
from speechbrain.nnet.linear import Linear

from hmamba_asr.hnet.router import HNetChunker
from hmamba_asr.models.conformer import ConformerEncoder
from hmamba_asr.models.conmamba import ConMambaEncoder
from hmamba_asr.models.hmamba import HierarchicalEncoder
from hmamba_asr.modules.chunkers import CTCChunker, FixedStrideChunker

LENGTHS = torch.tensor([31, 1, 2, 12])
D_MODEL = 16


def conmamba(num_layers=2, d_model=D_MODEL, **options):
    return ConMambaEncoder(
        num_layers=num_layers, d_model=d_model, d_ffn=32, kernel_size=7, dropout=0.1, d_state=4, **options
    )


def conformer():
    return ConformerEncoder(num_layers=2, d_model=D_MODEL, d_ffn=32, nhead=2, kernel_size=7, dropout=0.1)


def hmamba(chunker, output, *, inner=None, **options):
    inner = inner or conmamba(1, options.get("inner_d_model") or D_MODEL)
    return HierarchicalEncoder(
        outer=conmamba(), chunker=chunker, inner=inner, d_model=D_MODEL, output=output, **options
    )


def by_ctc(window=10):
    return CTCChunker(target_ratio=3.0, window=window, chunks_per_label=1.1)


def hnet():
    """With projections that are not the identity, as after training."""
    chunker = HNetChunker(d_model=D_MODEL, target_ratio=2.0)
    torch.nn.init.normal_(chunker.query.weight)
    return chunker


def stride(stride, pooling="first"):
    return FixedStrideChunker(stride=stride, pooling=pooling)


FLAT = {
    "ConMamba": conmamba,
    "ConMamba, causal": lambda: conmamba(causal=True),
    "Conformer": conformer,
}
HIERARCHICAL = {
    "CTC, frames": lambda: hmamba(by_ctc(), "frames"),
    "CTC, chunks": lambda: hmamba(by_ctc(None), "chunks"),
    "H-Net, frames": lambda: hmamba(hnet(), "frames"),
    "H-Net, chunks": lambda: hmamba(hnet(), "chunks"),
    "stride, frames": lambda: hmamba(stride(3, "mean"), "frames"),
    "stride, chunks": lambda: hmamba(stride(2.5), "chunks"),
    "wider inside, frames": lambda: hmamba(by_ctc(), "frames", inner_d_model=24),
    "wider inside, chunks": lambda: hmamba(stride(2), "chunks", inner_d_model=24),
    "nested, frames": lambda: hmamba(by_ctc(), "frames", inner=hmamba(stride(2), "frames")),
    "nested, chunks": lambda: hmamba(by_ctc(), "chunks", inner=hmamba(stride(2), "chunks")),
    "nested, H-Net": lambda: hmamba(hnet(), "chunks", inner=hmamba(stride(2), "chunks")),
    "nested, chunks of frames": lambda: hmamba(hnet(), "chunks", inner=hmamba(stride(2), "frames")),
}
ENCODERS = FLAT | HIERARCHICAL


def made(name):
    """Return an encoder whose biases are not zero, as after training: it is through them that padding
    leaks."""
    torch.manual_seed(0)
    model = ENCODERS[name]().eval()
    for parameter_name, parameter in model.named_parameters():
        if name in FLAT and parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5)
        elif parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model


def ctc_head():
    """Return a head that is sure of something, as after training."""
    torch.manual_seed(2)
    head = Linear(input_size=D_MODEL, n_neurons=9)
    torch.nn.init.normal_(head.w.weight)
    return head


def encode(encoder, x, lengths, min_states=None):
    """Call an encoder as ASRModel does."""
    return encoder(x, lengths, min_states, **({"ctc_head": ctc_head()} if encoder.reads_ctc else {}))


def padded(dtype=torch.float32, fill=None):
    torch.manual_seed(1)
    x = torch.randn(len(LENGTHS), 36, D_MODEL, dtype=dtype)  # noise past the ends
    for row, n in zip(x, LENGTHS.tolist(), strict=True):
        if fill is not None:
            row[n:] = fill
    return x
