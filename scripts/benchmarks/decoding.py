#!/usr/bin/env python3
"""Time our beam search and SpeechBrain's on the same weights and encoder states.

    python scripts/benchmarks/decoding.py [--device cuda] [--beam 66] [--batch 8] [--json FILE]

The utterances have 15 s (375 encoder states). There are 5000 tokens, a decoder of 4 layers with d_model 144
and a CTC of weight 0.4. A second search adds a Transformer LM of 12 layers with d_model 768, the sizes of
hparams/conmamba_small_ls100.yaml. The weights are random, the heads are sharpened, and the end of sentence is
never likely, so that every search takes 44 steps, as many as such an utterance has tokens.

Before anything is timed, both searches decode the utterances. Scores must agree within 1e-3; the table says
how many hypotheses are identical. On a GPU our search is also timed against itself without CUDA graphs. The
last table divides the time of our search without CUDA graphs among its parts.
"""

from __future__ import annotations

import time
from collections import Counter

import torch
from benchmarking import compare, options_of, print_table, write_json
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder, TransformerLMScorer
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear
from torch import nn

from hmamba_asr.decoding.beam import JointBeamSearcher
from hmamba_asr.models.asr import ASRModel
from hmamba_asr.models.outputs import Encoder, EncoderOutput
from hmamba_asr.system.hardware import hardware, machine_name
from hmamba_asr.system.memory import added_memory_mib

BLANK, BOS, EOS, VOCAB, D_MODEL = 0, 1, 2, 5000, 144
SECONDS, FRAMES_PER_SECOND, TOKENS = 15, 25, 44
LM = {
    "d_model": 768,
    "nhead": 12,
    "num_encoder_layers": 12,
    "num_decoder_layers": 0,
    "d_ffn": 3072,
    "dropout": 0.0,
}
SHARPNESS = 10.0  # factor on the heads' random weights; as peaked as a trained recogniser
SCORE_TOLERANCE = 1e-3


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--beam", type=int, nargs="+", default=[10], help="beam sizes")
    parser.add_argument("--batch", type=int, default=1, help="utterances decoded at once, by both")
    parser.add_argument("--pairs", type=int, default=3, help="timed pairs of runs")
    parser.add_argument("--threads", type=int, help="PyTorch's threads on a CPU (default: its own choice)")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    states = torch.randn(options.batch, SECONDS * FRAMES_PER_SECOND, D_MODEL, device=device)
    model = recogniser(device)
    lm = TransformerLM(VOCAB, **LM, activation=nn.GELU, normalize_before=False).to(device).eval()
    machine = hardware(device)
    print(
        f"{machine_name(machine)}, torch {torch.__version__}; {options.batch} x {SECONDS} s, {VOCAB} tokens"
    )

    figures = {"hardware": machine, "torch": torch.__version__, "batch": options.batch, "searches": {}}
    rows, breakdown, identical, total = [], [], 0, 0
    for beam in options.beam:
        for name, added in (("", None), ("_lm", lm)):
            ours, theirs = (
                searcher(kind, model, added, beam) for kind in (JointBeamSearcher, S2STransformerBeamSearcher)
            )
            same = check(ours, theirs, states)
            identical, total = identical + same, total + len(states)
            runs = [lambda search=search: decode(search, states) for search in (ours, theirs)]
            ratio = compare(*runs, device, pairs=options.pairs, warmup=0)  # the check was the warm-up
            steps = None
            if device.type == "cuda":
                steps = compare(
                    runs[0], lambda ours=ours: step_by_step(ours, states), device, pairs=max(3, options.pairs)
                )
            memory = [added_memory_mib(run, device) for run in runs]
            shares = where_time_goes(ours, states, device)
            audio = SECONDS * len(states)
            figures[f"speedup_beam{beam}{name}"] = ratio.median
            figures["searches"][f"beam{beam}{name}"] = {
                "speedup_min": ratio.low,
                "speedup_max": ratio.high,
                "graph_vs_steps": steps and vars(steps),
                "ours_rtf": ratio.ours / audio,
                "theirs_rtf": ratio.theirs / audio,
                "ours_mib": memory[0],
                "theirs_mib": memory[1],
                "seconds": shares,
            }
            title = f"beam {beam}{', LM' if added else ''}"
            rows.append(
                [title, f"{ratio.ours:.3f}", f"{ratio.theirs:.3f}", str(ratio)]
                + ([str(steps)] if steps else [])
                + ["" if m is None else f"{m:.0f}" for m in memory]
            )
            breakdown.append([title, *(f"{shares[part]:.3f}" for part in PARTS)])
    figures["identical_fraction"] = identical / total
    header = ["search", "ours, s", "SpeechBrain, s", "ratio: median (min to max)"]
    header += [*(["CUDA graph over steps"] if device.type == "cuda" else []), "MiB", "SpeechBrain MiB"]
    print_table(f"Joint CTC/attention search, {identical} of {total} hypotheses identical", header, rows)
    print_table("Our time by part, s, step by step without a CUDA graph", ["search", *PARTS], breakdown)
    write_json(options.json, figures)


class NoEncoder(Encoder):
    """Stand-in for the encoder, which the benchmark does not run: encoder states are given."""

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor, min_states: torch.Tensor | None = None
    ) -> EncoderOutput:
        raise NotImplementedError


def recogniser(device: torch.device) -> ASRModel:
    """Build the decoder and heads of the small recipe; front-end and encoder are empty, as states are
    given."""
    model = ASRModel(
        frontend=nn.Identity(),
        encoder=NoEncoder(),
        ctc_head=Linear(input_size=D_MODEL, n_neurons=VOCAB),
        output_head=Linear(input_size=D_MODEL, n_neurons=VOCAB),
        d_model=D_MODEL,
        num_decoder_layers=4,
        nhead=4,
        d_ffn=1024,
        dropout=0.0,
    )
    with torch.no_grad():
        for head in (model.ctc_head, model.output_head):
            head.w.weight.mul_(SHARPNESS)
        model.output_head.w.bias[EOS] = -100.0
    return model.to(device).eval()


def searcher(kind, model: ASRModel, lm: nn.Module | None, beam: int):
    """Build a searcher as the recipes do, with scorers of its own, because SpeechBrain's keep states."""
    scorers: list = [CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS)]
    weights = {"ctc": 0.4}
    if lm is not None:
        scorers.append(TransformerLMScorer(language_model=lm, temperature=1.15))
        weights["transformerlm"] = 0.2
    return kind(
        modules=[model, model.output_head],
        bos_index=BOS,
        eos_index=EOS,
        beam_size=beam,
        temperature=1.15,
        min_decode_ratio=0.0,
        max_decode_ratio=TOKENS / (SECONDS * FRAMES_PER_SECOND),
        length_normalization=True,
        using_eos_threshold=False,
        scorer=ScorerBuilder(full_scorers=scorers, weights=weights),
    )


@torch.no_grad()
def decode(search, states: torch.Tensor):
    return search(states, torch.ones(len(states), device=states.device))


def step_by_step(search: JointBeamSearcher, states: torch.Tensor):
    """Decode without a CUDA graph."""
    search.cuda_graph = False
    try:
        return decode(search, states)
    finally:
        search.cuda_graph = True


def check(ours, theirs, states: torch.Tensor) -> int:
    """Return how many hypotheses are identical; end the program if scores differ."""
    (found, _, scores, _), (expected, _, expected_scores, _) = decode(ours, states), decode(theirs, states)
    worst = (scores - expected_scores).abs().max().item()
    if not worst <= SCORE_TOLERANCE:
        raise SystemExit(
            f"error: scores are off by {worst:.1e}, more than {SCORE_TOLERANCE:.0e}; they are not timed."
        )
    return sum(a == b for a, b in zip(found, expected, strict=True))


PARTS = ("decoder", "CTC", "LM", "beam")


def where_time_goes(
    search: JointBeamSearcher, states: torch.Tensor, device: torch.device
) -> dict[str, float]:
    """Return the seconds that one search without a CUDA graph spends in its parts.

    These are the decoder with its head, each scorer, and the rest.
    """
    spent: Counter = Counter()

    def clocked(part: str, call):
        def run(*args, **kwargs):
            _synchronize(device)
            started = time.perf_counter()
            result = call(*args, **kwargs)
            _synchronize(device)
            spent[part] += time.perf_counter() - started
            return result

        return run

    owners = {"decoder": [(search.decoder, "start"), (search.decoder, "step"), (search.fc, "forward")]}
    for scorer in search.scorers:
        part = {"ctc": "CTC", "transformerlm": "LM"}[scorer.name]
        owners[part] = [(scorer, "start"), (scorer, "scores"), (scorer, "advance")]
    for part, methods in owners.items():
        for owner, name in methods:
            setattr(owner, name, clocked(part, getattr(owner, name)))
    clocked("beam", step_by_step)(search, states)
    for owner, name in (method for methods in owners.values() for method in methods):
        delattr(owner, name)
    spent["beam"] -= spent["decoder"] + spent["CTC"] + spent["LM"]
    return {part: spent[part] for part in PARTS}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
