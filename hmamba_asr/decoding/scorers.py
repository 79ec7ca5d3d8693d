"""What a joint beam search adds to the attention decoder: CTC, Transformer LM, length, n-gram LM.

Each scorer here does the work of the one in SpeechBrain's ``ScorerBuilder`` whose settings and modules it
reads, for B utterances with K hypotheses each. The calls of one step are ``scores`` and then ``advance``.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.decoders import scorer as speechbrain_scorers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hmamba_asr.decoding.ctc_prefix import IMPOSSIBLE, CTCPrefixScorer
from hmamba_asr.decoding.stepper import LanguageModelStepper, StepperState, TransformerStepper
from hmamba_asr.lengths import valid_mask

LOGITS_AT_ONCE = 1 << 26  # 256 MiB in float32


class Scorer:
    """Scores of every next token, to be weighted and added.

    ``partial``: only the best tokens by everything else are scored, the others are ruled out.
    """

    name = ""
    highest = 0.0  # that the score of one token can be: probabilities are below one
    needs_attention = False
    max_steps = math.inf
    rescores = False  # has ``sentences``: can be left out of the search and asked about its results
    on_device = (
        False  # whether ``scores`` and ``advance`` are work for the device only, the same in every step
    )
    model: nn.Module | None = None  # what has parameters of its own, apart from the recogniser's

    def __init__(self, weight: float, partial: bool):
        self.weight, self.partial = weight, partial

    def start(self, states: Tensor, lengths: Tensor) -> None:
        """Begin with the encoder states (B, T, d_model) and lengths (B,) of a batch."""

    def prepare(self, hypotheses: int) -> None:
        """What the host does before each step of so many hypotheses."""

    def carried(self) -> list[tuple[object, str]]:
        """Owners and names of the tensors that a step leaves to the next one in place of its own."""
        return []

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        """Newest tokens (B, K), their cross-attention (B, K, T), candidates (B, K, C) if partial -> (B, K,
        vocab)."""
        raise NotImplementedError

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor | None:
        """Go on with ``tokens`` (B, K') after hypotheses ``parents``; their scores (B, K'), if it knows them
        better now."""

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""

    def sentences(self, sentences: list[list[int]], *, bos: int, eos: int, device: torch.device) -> Tensor:
        """Log-probabilities (N,) of N whole sentences of any length, each from ``bos``, which is not scored,
        to ``eos``, which is."""
        raise NotImplementedError


class CTC(Scorer):
    name = "ctc"
    on_device = True

    def __init__(self, settings: speechbrain_scorers.CTCScorer, weight: float, partial: bool):
        super().__init__(weight, partial)
        self.head, self.blank, self.eos = settings.ctc_fc, settings.blank_index, settings.eos_index
        self.window_size = settings.ctc_window_size
        self.needs_attention = self.window_size > 0

    def start(self, states: Tensor, lengths: Tensor) -> None:
        log_probs = at_least_float32(self.head(states)).log_softmax(-1)
        self.prefixes = CTCPrefixScorer(log_probs, lengths, blank=self.blank, eos=self.eos)
        self.state, self.window = self.prefixes.start(), None

    def carried(self) -> list[tuple[object, str]]:
        return [(self.state, field.name) for field in fields(self.state)]

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        if self.needs_attention and attention is not None:
            peaks = attention.argmax(-1)
            first = peaks.amin(1) - self.window_size
            # As in SpeechBrain, frame 0 is where the recursion begins: it counts unless the window opens
            # after frame 1.
            self.window = torch.stack([first.where(first > 1, 0), peaks.amax(1) + self.window_size], 1)
        scores = self.prefixes.next_scores(self.state, self.window)
        if candidates is None:
            return scores
        chosen = torch.full_like(scores, IMPOSSIBLE).scatter_(-1, candidates, scores.gather(-1, candidates))
        chosen[..., self.eos] = scores[..., self.eos]
        chosen[..., self.blank] = IMPOSSIBLE
        return chosen

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor:
        before = self.state.score.gather(1, parents)
        self.state = self.prefixes.extend(self.state, parents, tokens, self.window)
        return self.state.score - before

    def keep(self, rows: Tensor) -> None:
        self.prefixes.keep(rows)
        self.state = self.state.keep(rows)
        self.window = None if self.window is None else self.window[rows]


class Stepped(Scorer):
    """A Transformer that goes on from what it computed for the prefix, its ``state``."""

    on_device = True
    state: StepperState

    def prepare(self, hypotheses: int) -> None:
        self.state.prepare(hypotheses)

    def carried(self) -> list[tuple[object, str]]:
        return self.state.carried()

    def advance(self, parents: Tensor, tokens: Tensor) -> None:
        self.state.reorder(parents)

    def keep(self, rows: Tensor) -> None:
        self.state.keep(rows)


class TransformerLM(Stepped):
    name = "transformerlm"
    rescores = True

    def __init__(self, settings: speechbrain_scorers.TransformerLMScorer, weight: float, partial: bool):
        super().__init__(weight, partial)
        self.model, self.stepper, self.temperature = (
            settings.lm,
            LanguageModelStepper(settings.lm),
            settings.temperature,
        )
        self.max_steps = self.stepper.max_steps

    def start(self, states: Tensor, lengths: Tensor) -> None:
        self.model.eval().to(states.device)
        self.state = self.stepper.start()

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        return (at_least_float32(self.stepper.step(self.state, tokens)) / self.temperature).log_softmax(-1)

    def sentences(self, sentences: list[list[int]], *, bos: int, eos: int, device: torch.device) -> Tensor:
        """All in one padded batch, in parts where its logits would be more than ``LOGITS_AT_ONCE``
        numbers."""
        model = self.model.eval().to(device)
        lengths = torch.tensor([len(sentence) + 1 for sentence in sentences], device=device)
        rows = [torch.tensor([bos, *sentence, eos]) for sentence in sentences]
        whole = pad_sequence(rows, batch_first=True).to(device)  # with 0, which the model takes for padding
        at_once = max(1, LOGITS_AT_ONCE // (whole.shape[1] * model.custom_src_module.emb.num_embeddings))
        dtype = next(model.parameters()).dtype
        half = dtype in (torch.bfloat16, torch.float16)
        # SpeechBrain's masks are float32 in whatever precision the model is, which only autocast brings
        # together.
        precision = torch.autocast(device.type, dtype=dtype) if half else nullcontext()
        totals = []
        for tokens, ends in zip(whole.split(at_once), lengths.split(at_once), strict=True):
            with precision:
                logits = at_least_float32(model(tokens[:, :-1])) / self.temperature
            log_probs = logits.log_softmax(-1).gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
            totals.append(log_probs.masked_fill(~valid_mask(ends, log_probs.shape[1]), 0.0).sum(1))
        return torch.cat(totals)


class InternalLM(Stepped):
    """What the attention decoder says without hearing anything, to be taken off when a language model joins.

    The output of its cross-attention is zero in every layer (Meng et al. 2021, "Internal Language Model
    Estimation for Domain-Adaptive End-to-End Speech Recognition", https://arxiv.org/abs/2011.01991; Variani
    et al. 2020, "Hybrid Autoregressive Transducer", https://arxiv.org/abs/2003.07705). ``temperature`` is the
    one that the decoder is searched with; ``weight`` is what is taken off, so the scorer's own is negative.
    """

    name = "internal_lm"

    def __init__(self, decoder: TransformerStepper, head: nn.Module, *, weight: float, temperature: float):
        super().__init__(-weight, partial=False)
        self.decoder, self.head, self.temperature = decoder, head, temperature

    def start(self, states: Tensor, lengths: Tensor) -> None:
        self.state = self.decoder.start()

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        hidden, _ = self.decoder.step(self.state, tokens)
        return (at_least_float32(self.head(hidden)) / self.temperature).log_softmax(-1)


class Length(Scorer):
    """One for every token."""

    name = "length"
    on_device = True
    highest = 1.0

    def __init__(self, settings: speechbrain_scorers.LengthScorer, weight: float, partial: bool):
        super().__init__(weight, partial)
        self.vocab_size = settings.vocab_size

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        return torch.ones(*tokens.shape, self.vocab_size, device=tokens.device)


class Ngram(Scorer):
    """KenLM, a call for each token scored: have it among the partial scorers."""

    name = "kenlm"
    rescores = True

    def __init__(self, settings: speechbrain_scorers.KenLMScorer, weight: float, partial: bool):
        super().__init__(weight, partial)
        self.lm, self.new_state, self.words = settings.lm, settings.kenlm.State, settings.id2char

    def start(self, states: Tensor, lengths: Tensor) -> None:
        self.states = [[self._empty()] for _ in lengths]

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        every = range(len(self.words))
        chosen = [[every] * len(row) for row in self.states] if candidates is None else candidates.tolist()
        scores = torch.full((*tokens.shape, len(self.words)), IMPOSSIBLE)
        for row, state_row, chosen_row in zip(scores, self.states, chosen, strict=True):
            for out, state, words in zip(row, state_row, chosen_row, strict=True):
                out[torch.tensor(words)] = torch.tensor([self._score(state, word)[0] for word in words])
        return scores.to(tokens.device)

    def advance(self, parents: Tensor, tokens: Tensor) -> None:
        self.states = [
            [self._score(states[parent], token)[1] for parent, token in zip(*row, strict=True)]
            for states, *row in zip(self.states, parents.tolist(), tokens.tolist(), strict=True)
        ]

    def keep(self, rows: Tensor) -> None:
        self.states = [self.states[row] for row in rows.tolist()]

    def sentences(self, sentences: list[list[int]], *, bos: int, eos: int, device: torch.device) -> Tensor:
        totals = []
        for sentence in sentences:
            state, total = self._empty(), 0.0
            for token in [*sentence, eos]:
                score, state = self._score(state, token)
                total += score
            totals.append(total)
        return torch.tensor(totals, device=device)

    def _empty(self):
        """The state that knows of no words: as SpeechBrain's scorer begins, without a begin of sentence."""
        state = self.new_state()
        self.lm.NullContextWrite(state)
        return state

    def _score(self, state, token: int):
        """log P(token | state) and the state after it; KenLM counts in log10."""
        following = self.new_state()
        return self.lm.BaseScore(state, self.words[token], following) * math.log(10), following


KINDS = {
    speechbrain_scorers.CTCScorer: CTC,
    speechbrain_scorers.TransformerLMScorer: TransformerLM,
    speechbrain_scorers.LengthScorer: Length,
    speechbrain_scorers.KenLMScorer: Ngram,
}


def read_scorers(builder: speechbrain_scorers.ScorerBuilder | None) -> list[Scorer]:
    """The scorers of a ``ScorerBuilder`` with their weights, full ones first; none for None.

    Raises
    ------
    ValueError
        For a scorer that there is no counterpart of here.
    """
    if builder is None:
        return []
    scorers = []
    for partial, group in ((False, builder.full_scorers), (True, builder.partial_scorers)):
        for name, settings in group.items():
            if type(settings) not in KINDS:
                known = ", ".join(kind.__name__ for kind in KINDS)
                raise ValueError(
                    f"JointBeamSearcher has no counterpart of {type(settings).__name__}: give it {known}, or use "
                    "SpeechBrain's S2STransformerBeamSearcher."
                )
            scorers.append(KINDS[type(settings)](settings, builder.weights[name], partial))
    return scorers


def weigh(scorers: list[Scorer], *, ctc: float | None, lm: float | None) -> None:
    """Give the CTC and every language model another weight (None: as it is); the decoder's own language model
    (:class:`InternalLM`) keeps its.

    Raises
    ------
    ValueError
        For a weight of something that is not there, of the CTC one that is not from 0 to 1 or is 1 in a
        partial scorer, of a language model one that is below 0 or not finite. Nothing is changed then.
    """
    ctcs, lms = [s for s in scorers if s.name == "ctc"], [s for s in scorers if s.rescores]
    if ctc is not None and not 0 <= ctc <= 1:
        raise ValueError(f"the CTC's weight is {ctc}; it must be from 0 to 1.")
    if ctc == 1 and any(s.partial for s in ctcs):
        raise ValueError(
            "a CTC of weight 1 scores alone, and a partial scorer cannot; have it among the full scorers."
        )
    if lm is not None and not 0 <= lm < math.inf:
        raise ValueError(f"the language model's weight is {lm}; it must be 0 or more.")
    if ctc is not None and not ctcs:
        raise ValueError(f"the search has no CTC to be given the weight {ctc}.")
    if lm is not None and not lms:
        raise ValueError(
            f"the search has no language model to be given the weight {lm}; evaluate the run with --lm_folder first."
        )
    for chosen, weight in ((ctcs, ctc), (lms, lm)):
        for scorer in chosen if weight is not None else ():
            scorer.weight = weight


def load_language_model(folder: str | Path, *, weight: float, vocab_size: int) -> Scorer:
    """The scorer of a language model: of train_lm.py's export its YAML lm.yaml and its parameters lm.ckpt, of
    train_ngram.py's ngram.bin or ngram.arpa and tokens.txt. An n-gram is a partial scorer.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder lacks one of them, the model has another vocabulary, an n-gram cannot be read or lacks
        the package kenlm.
    """
    folder = Path(folder)
    ngram = next((path for name in ("ngram.bin", "ngram.arpa") if (path := folder / name).is_file()), None)
    needed = [folder / name for name in (("lm.yaml", "lm.ckpt") if ngram is None else ("tokens.txt",))]
    for path in needed:
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}; lm_folder must be the export folder of train_lm.py or train_ngram.py."
            )
    if ngram is not None:
        tokens = needed[0].read_text(encoding="utf-8").rstrip("\n").split("\n")
        _require_vocabulary(folder, len(tokens), vocab_size)
        try:
            return Ngram(
                speechbrain_scorers.KenLMScorer(str(ngram), vocab_size, tokens), weight, partial=True
            )
        except ImportError as error:
            raise ValueError(f"{ngram} needs the package kenlm; install it: pip install kenlm.") from error
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"KenLM cannot read {ngram} ({' '.join(str(error).split())}); run train_ngram.py again."
            ) from error
    model = load_hyperpyyaml(needed[0].read_text(encoding="utf-8"))["model"]
    model.load_state_dict(torch.load(needed[1], map_location="cpu", weights_only=True))
    _require_vocabulary(folder, model.custom_src_module.emb.num_embeddings, vocab_size)
    return TransformerLM(speechbrain_scorers.TransformerLMScorer(model), weight, partial=False)


def _require_vocabulary(folder: Path, size: int, vocab_size: int) -> None:
    if size != vocab_size:
        raise ValueError(
            f"the language model in {folder} has {size} tokens and the recogniser {vocab_size}; train it with the recogniser's "
            "tokenizer."
        )


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
