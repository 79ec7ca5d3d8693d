"""Scorers of a joint beam search: CTC, Transformer LM, n-gram LM, internal LM and length.

Each scorer takes its settings and modules from its counterpart in SpeechBrain's ``ScorerBuilder``, and scores
B utterances with K hypotheses each. A search calls ``start`` once and, in each step, ``prepare``, ``scores``
and ``advance``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from speechbrain.decoders import scorer as speechbrain_scorers
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hmamba_asr.decoding.ctc_prefix import CTCPrefixScorer
from hmamba_asr.decoding.stepper import LanguageModelStepper, StepperState, TransformerStepper
from hmamba_asr.lengths import valid_mask
from hmamba_asr.ops.ctc import IMPOSSIBLE

LOGITS_AT_ONCE = 1 << 26  # numbers; 256 MiB in float32


class Scorer:
    """Score of every next token, which the search weights and adds up.

    Parameters
    ----------
    weight
        Weight of the scores in the sum.
    partial
        Whether the scorer scores only the tokens that all full scorers together rank best. The other tokens
        are ruled out.

    Attributes
    ----------
    name
        Name in results, as in SpeechBrain's ``ScorerBuilder``.
    max_score
        Upper bound of the score of one token. It is 0 for log-probabilities.
    max_steps
        Largest number of tokens that it can score.
    needs_attention
        Whether ``scores`` reads the decoder's cross-attention.
    can_rescore
        Whether it can score whole sentences. It may then rank the results of a search instead of taking part.
    capturable
        Whether ``scores`` and ``advance`` run on the device alone, so that a CUDA graph can replay them.
    model
        A module that is no part of the recogniser, such as a language model; None without one.
    blank
        Index of the CTC's blank, which no hypothesis may contain; None without a CTC.
    """

    name = ""
    max_score = 0.0
    max_steps: float = math.inf
    needs_attention = False
    can_rescore = False
    capturable = False
    model: nn.Module | None = None
    blank: int | None = None

    def __init__(self, weight: float, partial: bool):
        self.weight, self.partial = weight, partial

    def start(self, states: Tensor, lengths: Tensor) -> None:
        """Begin a search over encoder states (B, T, d_model) with lengths (B,)."""

    def prepare(self, hypotheses: int) -> None:
        """Do the host's work before a step with ``hypotheses`` hypotheses per utterance."""

    def carried(self) -> list[tuple[object, str]]:
        """Name the tensors that a step replaces and the next one reads, each as owner and attribute."""
        return []

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        """Score every next token.

        Parameters
        ----------
        tokens
            Newest token of each hypothesis (B, K).
        attention
            Cross-attention of the newest tokens (B, K, T), None if the search has no decoder.
        candidates
            Tokens to score (B, K, C) if the scorer is partial, else None.

        Returns
        -------
        Tensor
            Scores (B, K, vocab).
        """
        raise NotImplementedError

    def advance(self, parents: Tensor, tokens: Tensor) -> Tensor | None:
        """Update the scorer's state to the new hypotheses of the search.

        Parameters
        ----------
        parents
            Hypothesis that each new one continues (B, K').
        tokens
            The token that it adds (B, K').

        Returns
        -------
        Tensor or None
            Scores of these tokens (B, K') if they are more exact than those of ``scores``, else None.
        """
        return None

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""

    def score_sentences(
        self, sentences: list[list[int]], *, bos: int, eos: int, device: torch.device
    ) -> Tensor:
        """Return the log-probabilities (N,) of N whole sentences, ``eos`` included and ``bos`` not."""
        raise NotImplementedError


class CTCScorer(Scorer):
    """CTC prefix scores, see :class:`~hmamba_asr.decoding.ctc_prefix.CTCPrefixScorer`."""

    name = "ctc"
    capturable = True
    blank: int

    def __init__(self, settings: speechbrain_scorers.CTCScorer, weight: float, partial: bool):
        super().__init__(weight, partial)
        self.head, self.blank, self.eos = settings.ctc_fc, settings.blank_index, settings.eos_index
        self.window_size = settings.ctc_window_size
        self.needs_attention = self.window_size > 0

    def start(self, states: Tensor, lengths: Tensor) -> None:
        log_probs = at_least_float32(self.head(states)).log_softmax(-1)
        self.prefixes = CTCPrefixScorer(log_probs, lengths, blank=self.blank, eos=self.eos)
        self.state = self.prefixes.start()
        self.window: Tensor | None = None

    def carried(self) -> list[tuple[object, str]]:
        return [(self.state, field.name) for field in fields(self.state)]

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        if self.needs_attention and attention is not None:
            peaks = attention.argmax(-1)
            first = peaks.amin(1) - self.window_size
            # As in SpeechBrain, the recursion begins at frame 0, which counts unless the window opens after
            # frame 1.
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


class _SteppedScorer(Scorer):
    """A Transformer whose ``state`` holds what it computed for each prefix."""

    capturable = True
    state: StepperState

    def prepare(self, hypotheses: int) -> None:
        self.state.prepare(hypotheses)

    def carried(self) -> list[tuple[object, str]]:
        return self.state.carried()

    def advance(self, parents: Tensor, tokens: Tensor) -> None:
        self.state.reorder(parents)

    def keep(self, rows: Tensor) -> None:
        self.state.keep(rows)


class TransformerLMScorer(_SteppedScorer):
    """SpeechBrain's Transformer LM."""

    name = "transformerlm"
    can_rescore = True
    model: TransformerLM

    def __init__(self, settings: speechbrain_scorers.TransformerLMScorer, weight: float, partial: bool):
        super().__init__(weight, partial)
        self.model, self.temperature = settings.lm, settings.temperature
        self.stepper = LanguageModelStepper(settings.lm)
        self.max_steps = self.stepper.max_steps

    def start(self, states: Tensor, lengths: Tensor) -> None:
        self.model.eval().to(states.device)
        self.state = self.stepper.start()

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        return (at_least_float32(self.stepper.step(self.state, tokens)) / self.temperature).log_softmax(-1)

    def score_sentences(
        self, sentences: list[list[int]], *, bos: int, eos: int, device: torch.device
    ) -> Tensor:
        """Score one padded batch, in parts of at most ``LOGITS_AT_ONCE`` logits."""
        model = self.model.eval().to(device)
        lengths = torch.tensor([len(sentence) + 1 for sentence in sentences], device=device)
        rows = [torch.tensor([bos, *sentence, eos]) for sentence in sentences]
        whole = pad_sequence(rows, batch_first=True).to(device)  # the model takes 0 for padding
        at_once = max(1, LOGITS_AT_ONCE // (whole.shape[1] * model.custom_src_module.emb.num_embeddings))
        dtype = next(model.parameters()).dtype
        half = dtype in (torch.bfloat16, torch.float16)
        # SpeechBrain's masks are float32 whatever the model's precision; autocast makes them agree.
        precision = torch.autocast(device.type, dtype=dtype) if half else nullcontext()
        totals = []
        for tokens, ends in zip(whole.split(at_once), lengths.split(at_once), strict=True):
            with precision:
                logits = at_least_float32(model(tokens[:, :-1])) / self.temperature
            log_probs = logits.log_softmax(-1).gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
            totals.append(log_probs.masked_fill(~valid_mask(ends, log_probs.shape[1]), 0.0).sum(1))
        return torch.cat(totals)


class InternalLMScorer(_SteppedScorer):
    """The attention decoder's internal language model, which the search subtracts.

    The decoder runs with the output of its cross-attention set to zero in every layer (Meng et al. 2021,
    "Internal Language Model Estimation for Domain-Adaptive End-to-End Speech Recognition",
    https://arxiv.org/abs/2011.01991; Variani et al. 2020, "Hybrid Autoregressive Transducer",
    https://arxiv.org/abs/2003.07705).

    Parameters
    ----------
    decoder
        Steps the decoder.
    head
        Maps the decoder's output to logits.
    weight
        Factor of the scores that are subtracted. The scorer's own ``weight`` is its negative.
    temperature
        Divisor of the logits, the same as in the search with the decoder.
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


class LengthScorer(Scorer):
    """A bonus of 1 for every token."""

    name = "length"
    capturable = True
    max_score = 1.0

    def __init__(self, settings: speechbrain_scorers.LengthScorer, weight: float, partial: bool):
        super().__init__(weight, partial)
        self.vocab_size = settings.vocab_size

    def scores(self, tokens: Tensor, attention: Tensor | None, candidates: Tensor | None) -> Tensor:
        return torch.ones(*tokens.shape, self.vocab_size, device=tokens.device)


class NgramScorer(Scorer):
    """An n-gram model of KenLM, on the host. It is called once per token, so use it as a partial scorer."""

    name = "kenlm"
    can_rescore = True

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

    def score_sentences(
        self, sentences: list[list[int]], *, bos: int, eos: int, device: torch.device
    ) -> Tensor:
        totals = []
        for sentence in sentences:
            state, total = self._empty(), 0.0
            for token in [*sentence, eos]:
                score, state = self._score(state, token)
                total += score
            totals.append(total)
        return torch.tensor(totals, device=device)

    def _empty(self) -> Any:
        """Return KenLM's state without context; SpeechBrain's scorer starts there too, not at ``<s>``."""
        state = self.new_state()
        self.lm.NullContextWrite(state)
        return state

    def _score(self, state: Any, token: int) -> tuple[float, Any]:
        """Return log P(token | state) and the state after the token; KenLM's own unit is log10."""
        following = self.new_state()
        return self.lm.BaseScore(state, self.words[token], following) * math.log(10), following


COUNTERPARTS: dict[type, Callable[[Any, float, bool], Scorer]] = {
    speechbrain_scorers.CTCScorer: CTCScorer,
    speechbrain_scorers.TransformerLMScorer: TransformerLMScorer,
    speechbrain_scorers.LengthScorer: LengthScorer,
    speechbrain_scorers.KenLMScorer: NgramScorer,
}


def build_scorers(builder: speechbrain_scorers.ScorerBuilder | None) -> list[Scorer]:
    """Build our counterparts of the scorers in a ``ScorerBuilder``.

    Parameters
    ----------
    builder
        SpeechBrain's scorers and their weights; None for none.

    Returns
    -------
    list of Scorer
        The scorers, full ones first.

    Raises
    ------
    ValueError
        If a scorer has no counterpart here.
    """
    if builder is None:
        return []
    scorers: list[Scorer] = []
    for partial, group in ((False, builder.full_scorers), (True, builder.partial_scorers)):
        for name, settings in group.items():
            if type(settings) not in COUNTERPARTS:
                known = ", ".join(kind.__name__ for kind in COUNTERPARTS)
                raise ValueError(
                    f"JointBeamSearcher has no counterpart of {type(settings).__name__}; give it {known}, or"
                    " use SpeechBrain's S2STransformerBeamSearcher."
                )
            scorers.append(COUNTERPARTS[type(settings)](settings, builder.weights[name], partial))
    return scorers


def set_weights(scorers: list[Scorer], *, ctc: float | None, lm: float | None) -> None:
    """Change the weight of the CTC and of every language model.

    The weight of the internal language model stays.

    Parameters
    ----------
    scorers
        The scorers to change.
    ctc, lm
        New weights; None leaves one as it is.

    Raises
    ------
    ValueError
        If there is no such scorer, the CTC's weight is not from 0 to 1 or is 1 for a partial scorer, or the
        language model's weight is negative or not finite. No weight has changed then.
    """
    ctcs, lms = [s for s in scorers if s.name == "ctc"], [s for s in scorers if s.can_rescore]
    if ctc is not None and not 0 <= ctc <= 1:
        raise ValueError(f"the CTC's weight is {ctc}; it must be from 0 to 1.")
    if ctc == 1 and any(s.partial for s in ctcs):
        raise ValueError(
            "the CTC's weight is 1 and it is a partial scorer, which cannot score alone; have it among the"
            " full scorers."
        )
    if lm is not None and not 0 <= lm < math.inf:
        raise ValueError(f"the language model's weight is {lm}; it must be 0 or more.")
    if ctc is not None and not ctcs:
        raise ValueError(f"the search has no CTC to be given the weight {ctc}.")
    if lm is not None and not lms:
        raise ValueError(
            f"the search has no language model to be given the weight {lm}; evaluate the run with --lm_folder"
            " first."
        )
    for changed, weight in ((ctcs, ctc), (lms, lm)):
        if weight is not None:
            for scorer in changed:
                scorer.weight = weight


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
