#!/usr/bin/env python3
"""How much time does chunking save, in the encoder alone and with decoding, if so many frames are kept?

    python scripts/benchmarks/chunking.py [--device cuda] [--seconds 5 15 30] [--splits 8+4 4+8] [--ratios 2
    3] [--json FILE]

The model of hparams/conmamba_mini.yaml with the variant hmamba, in the size of conmamba_small (d_ffn 1024,
5000 units) and with random weights, beside the flat one of the same YAML, in one run. The CTC head reads the
frames and is then overruled: every N-th frame begins a chunk, for N = 2.65 every second or third. "chunks":
CTC and decoder read the chunks; "frames": they read frames again. Timed are front-end and encoder
("encoder"), a CUDA graph of these ("encoder, graph", the GPU's part without the host's), and these with
greedy CTC decoding and with the YAML's beam search. Both sides emit the same number of tokens. With --d_ffn
feed-forward layers are narrower on frames and wider on chunks; 512 and 2048 for 8+4 have as many parameters
as 1024 everywhere.

Nothing is timed unless four checks pass. If every frame is a chunk, the states are the flat encoder's. A
padded utterance has the states that it has alone. The kept fraction is the one asked for. The hypotheses of
both sides have the same length.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence

import torch
from benchmarking import (
    build,
    compare,
    graphed,
    options_of,
    print_table,
    relative_error,
    require,
    require_batch_invariance,
    split_of,
    write_json,
)

from hmamba_asr.system.hardware import hardware, machine_name

SIZE = {"d_ffn": 1024, "vocab_size": 5000}
TOKENS_PER_SECOND = 3  # about what LibriSpeech has of SpeechBrain's 5000 units
FRAMES_PER_SECOND = 100  # of features
COLUMNS = {
    "encoder": "encoder",
    "greedy": "encoder + greedy",
    "beam": "encoder + beam",
    "encoder_graph": "encoder, graph",
}


def number(text: str) -> float:
    """Return the number as it was given: 2 for "2", not 2.0."""
    return int(text) if text.isdigit() else float(text)


def recogniser(
    folder: str,
    device: torch.device,
    *,
    split: tuple[int, int] | None,
    ratio: float,
    form: str,
    frames: int,
    tokens: int,
    d_ffn: Sequence[int] | None = None,
):
    """Return the YAML's objects; the model is flat without a ``split``.

    The beam search emits ``tokens`` tokens for ``frames`` encoder states. ``d_ffn`` has the widths of the
    blocks on frames and on chunks, where these differ.
    """
    limits = dict.fromkeys(("min_decode_ratio", "max_decode_ratio"), (tokens + 0.5) / frames)
    overrides = {**SIZE, "beam_search": {"searcher": limits}}
    if split is None:
        hparams = build("conmamba_mini", overrides, folder)
    else:
        overrides |= {
            "outer": {"num_layers": split[0]},
            "inner": {"num_layers": split[1]},
            "encoder": {"output": form},
            # With chunks_per_label the encoder waits to count the chunks, which a CUDA graph cannot.
            "chunker": {"chunks_per_label": 0.0},
        }
        if d_ffn:
            overrides["outer"]["d_ffn"], overrides["inner"]["d_ffn"] = d_ffn
        hparams = build("conmamba_mini", overrides, folder, variants=["hmamba"], frames_per_chunk=ratio)
    for module in (hparams["model"], hparams["valid_search"], hparams["beam_search"]):
        module.eval().to(device)
    return hparams


def check(flat: dict, folder: str, device: torch.device) -> None:
    """Require that every frame a chunk is the flat encoder, and that batch mates do not matter."""
    frames = torch.randn(2, 200, flat["n_mels"], device=device)
    lengths = torch.tensor([200, 120], device=device)
    sizes = {"split": (8, 4), "form": "chunks", "frames": 50, "tokens": 1}
    same = recogniser(folder, device, ratio=1, **sizes)["model"]
    weights = {
        name: value for name, value in flat["model"].state_dict().items() if not name.startswith("encoder.")
    }
    for name, value in flat["encoder"].blocks.state_dict().items():
        layer, rest = name.split(".", 1)
        place = f"outer.blocks.{layer}" if int(layer) < 8 else f"inner.blocks.{int(layer) - 8}"
        weights[f"encoder.{place}.{rest}"] = value
    same.load_state_dict(weights)
    expected = flat["model"].encode(frames, lengths).states
    require(
        "H-Mamba with every frame a chunk",
        relative_error(same.encode(frames, lengths).states, expected),
        1e-4,
    )
    chunked = recogniser(folder, device, ratio=2, **sizes)["model"]
    require_batch_invariance("H-Mamba", chunked.encode, frames, 120)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument(
        "--seconds", type=int, nargs="+", default=[5, 15, 30], help="lengths of the utterances"
    )
    parser.add_argument(
        "--splits",
        type=split_of,
        nargs="+",
        default=[(8, 4), (6, 6), (4, 8)],
        help="blocks at the frame rate + at the chunk rate; the flat encoder has 12",
    )
    parser.add_argument("--ratios", type=number, nargs="+", default=[2, 3, 4], help="frames in a chunk")
    parser.add_argument("--forms", nargs="+", choices=("chunks", "frames"), default=["chunks", "frames"])
    parser.add_argument(
        "--d_ffn",
        type=int,
        nargs=2,
        metavar=("OUTER", "INNER"),
        help="of H-Mamba's blocks (default: 1024 1024)",
    )
    parser.add_argument("--batch", type=int, help="utterances in a batch (default: 1 on a CPU, 16 on a GPU)")
    parser.add_argument("--pairs", type=int, help="timed pairs of runs (default: 3 on a CPU, 10 on a GPU)")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    batch = options.batch or (16 if on_gpu else 1)
    pairs = options.pairs or (10 if on_gpu else 3)
    machine = machine_name(hardware(device))
    print(
        f"{machine}, torch {torch.__version__}, float32, batches of {batch}, "
        f"{TOKENS_PER_SECOND} tokens a second"
    )
    figures = {"hardware": hardware(device), "torch": torch.__version__, "batch": batch}
    figures |= {"d_ffn": options.d_ffn, "cases": {}}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for seconds in options.seconds:
            features = torch.randn(batch, 1 + FRAMES_PER_SECOND * seconds, 80, device=device)
            lengths = torch.full((batch,), features.shape[1], device=device)
            tokens = TOKENS_PER_SECOND * seconds
            frames = -(-features.shape[1] // 4)
            flat = recogniser(folder, device, split=None, ratio=1, form="", frames=frames, tokens=tokens)
            if seconds == options.seconds[0]:
                check(flat, folder, device)
            theirs = runs_of(flat, features, lengths)
            for split in options.splits:
                for ratio in options.ratios:
                    for form in options.forms:
                        kept_frames = math.ceil(frames / ratio)
                        states = kept_frames if form == "chunks" else frames
                        sizes = {
                            "split": split,
                            "ratio": ratio,
                            "form": form,
                            "frames": states,
                            "tokens": tokens,
                        }
                        ours = recogniser(folder, device, **sizes, d_ffn=options.d_ffn)
                        case = f"{seconds} s, {split[0]}+{split[1]}, N={ratio}, {form}"
                        kept = ours["model"].encode(features, lengths).stages[0].kept_fraction.mean().item()
                        require(f"the kept fraction of {case}", abs(kept - kept_frames / frames), 1e-6)
                        mine = runs_of(ours, features, lengths)
                        longer = {len(hypothesis) for run in (mine, theirs) for hypothesis in run["beam"]()}
                        require(f"the hypotheses' length in {case}", max(longer) - min(longer), 0)
                        ratios = {
                            part: compare(
                                mine[part], theirs[part], device, pairs=pairs, warmup=3 if on_gpu else 1
                            )
                            for part in mine
                        }
                        figures["cases"][case] = {
                            "kept": kept,
                            **{part: vars(value) for part, value in ratios.items()},
                        }
                        times = [f"{1e3 * ratios[part].ours:.1f}" for part in ratios]
                        rows.append([case, f"{kept:.2f}", *map(str, ratios.values()), " / ".join(times)])
    figures["speedup_n2_chunk_rate"] = (
        figures["cases"].get("15 s, 8+4, N=2, chunks", {}).get("beam", {}).get("median")
    )
    header = ["case", "kept", *COLUMNS.values()][: len(rows[0]) - 1] + ["H-Mamba's ms a batch"]
    print_table("Flat encoder's time over H-Mamba's: median (min to max)", header, rows)
    write_json(options.json, figures)


def runs_of(hparams: dict, features: torch.Tensor, lengths: torch.Tensor) -> dict:
    """Return what is timed, by name."""
    model = hparams["model"]
    runs = {
        "encoder": lambda: model.encode(features, lengths),
        "greedy": lambda: hparams["valid_search"](model(features, lengths)),
        "beam": lambda: hparams["beam_search"](model(features, lengths)),
    }
    if features.is_cuda:
        runs["encoder_graph"] = graphed(runs["encoder"])
    return runs


if __name__ == "__main__":
    main()
