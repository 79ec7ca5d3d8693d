"""Joint beam search of an attention decoder with CTC and language models."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from speechbrain.decoders.scorer import ScorerBuilder
from speechbrain.nnet.linear import Linear
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hmamba_asr.decoding.hypotheses import BeamState, Hypothesis, Step, Trellis
from hmamba_asr.decoding.scorers import Scorer, at_least_float32, build_scorers, set_weights
from hmamba_asr.decoding.step_graph import StepGraph
from hmamba_asr.decoding.stepper import StepperState, decoder_stepper
from hmamba_asr.lengths import to_absolute, valid_mask

# Steps between two checks whether the search is over. On a GPU each check makes the host wait for the device.
STEPS_BETWEEN_CHECKS = {"cpu": 1}
STEPS_BETWEEN_CHECKS_ON_GPU = 4


class JointBeamSearcher(nn.Module):
    """Beam search of an attention decoder, joined by CTC, language models and a length bonus.

    The search takes the arguments of SpeechBrain's ``S2STransformerBeamSearcher``, with its scorers in a
    ``ScorerBuilder``, and finds the same hypotheses (Kim et al. 2017, "Joint CTC-Attention based End-to-End
    Speech Recognition"; the end-of-sentence threshold and the limit on attention shifts are those of Hannun
    et al. 2019, https://arxiv.org/abs/1904.02619). It differs in these points:

    - The decoder and the language model reuse what they computed for the prefix. One matrix product gives the
      CTC scores.
    - Each utterance has its own step limits, within the positions that the models have. SpeechBrain takes
      those of the longest utterance in the batch, so its results depend on the other utterances.
    - An utterance ends early when no open hypothesis can beat its best ``topk`` finished ones. This is known
      because the score of a token is at most 0, or at most the length bonus.
    - ``max_attn_shift`` and the CTC window follow the attention of the newest token. A shift that is too
      large rules a hypothesis out, unless that would rule out every hypothesis of the utterance.
    - On a GPU a step is a CUDA graph (:class:`~hmamba_asr.decoding.step_graph.StepGraph`), unless
      ``cuda_graph`` is false or a scorer works on the host.
    - Language models can rank the ``beam_size`` best results of a search without them
      (:meth:`enable_rescoring`).

    Two of SpeechBrain's rules stay. ``beam_size`` finished hypotheses end an utterance. A hypothesis that is
    open at the step limit replaces its last token by the end of sentence.

    Parameters
    ----------
    modules
        The model and its output head. The model is an :class:`~hmamba_asr.models.asr.ASRModel` or
        SpeechBrain's ``TransformerASR``.
    bos_index, eos_index
        Tokens for the begin and the end of a sentence.
    min_decode_ratio, max_decode_ratio
        Fewest and most tokens of a hypothesis, as a fraction of the number of encoder states.
    beam_size
        Number of hypotheses that stay open.
    scorer
        SpeechBrain's scorers and their weights. The decoder's weight is 1 minus the weight of the CTC.
    temperature
        Divisor of the decoder's logits.
    return_topk
        Whether a call returns the ``topk`` best hypotheses instead of the best one.
    topk
        Number of results for each utterance.
    using_eos_threshold, eos_threshold
        Whether the end of sentence must have more than ``eos_threshold`` times the best token's
        log-probability.
    length_normalization
        Whether scores are divided by the number of tokens.
    using_max_attn_shift, max_attn_shift
        Whether the peak of the attention may move by less than ``max_attn_shift`` states from token to token.
    minus_inf
        Not used; accepted because SpeechBrain's searcher has it. Tokens that are ruled out score -inf.
    cuda_graph
        Whether steps on a GPU may be captured as CUDA graphs.

    Raises
    ------
    ValueError
        If a model or scorer is not supported, ``topk`` is out of range, special tokens coincide, a length
        bonus meets length normalisation, or ``bos_index`` is 0, which a Transformer LM takes for padding.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        bos_index: int,
        eos_index: int,
        min_decode_ratio: float,
        max_decode_ratio: float,
        beam_size: int,
        scorer: ScorerBuilder | None = None,
        temperature: float = 1.0,
        return_topk: bool = False,
        topk: int = 1,
        using_eos_threshold: bool = True,
        eos_threshold: float = 1.5,
        length_normalization: bool = True,
        using_max_attn_shift: bool = False,
        max_attn_shift: int = 60,
        minus_inf: float = -1e20,
        cuda_graph: bool = True,
    ):
        super().__init__()
        self.model: nn.Module = modules[0]
        self.fc: Linear = modules[1]
        self.bos_index, self.eos_index, self.beam_size, self.topk = bos_index, eos_index, beam_size, topk
        self.min_decode_ratio, self.max_decode_ratio = min_decode_ratio, max_decode_ratio
        self.temperature, self.return_topk = temperature, return_topk
        self.length_normalization = length_normalization
        self.eos_threshold = eos_threshold if using_eos_threshold else None
        self.max_attn_shift = max_attn_shift if using_max_attn_shift else None
        self.cuda_graph = cuda_graph
        self.decoder = decoder_stepper(self.model)
        self.scorers: list[Scorer] = build_scorers(scorer)
        self.rescorers: list[Scorer] = []
        scale = 2 if scorer is None else scorer.scorer_beam_scale  # 2 is SpeechBrain's default
        self.num_candidates = int(beam_size * scale)
        self.blank = next((s.blank for s in self.scorers if s.blank is not None), None)
        if self.blank is not None and len({bos_index, eos_index, self.blank}) < 3:
            raise ValueError(
                f"blank ({self.blank}), bos ({bos_index}) and eos ({eos_index}) must be three different"
                " tokens."
            )
        if not 1 <= topk <= beam_size:
            raise ValueError(f"topk is {topk} and beam_size {beam_size}; topk must be from 1 to beam_size.")
        if length_normalization and any(s.name == "length" and s.weight for s in self.scorers):
            raise ValueError(
                "a length bonus and length_normalization exclude each other; leave one of them out."
            )
        self._update_limits()

    def add_scorer(self, scorer: Scorer) -> None:
        """Let one more scorer take part in the search."""
        self.scorers.insert(len(self.scorers) if scorer.partial else 0, scorer)
        self._update_limits()

    def set_weights(self, *, ctc: float | None = None, lm: float | None = None) -> None:
        """Change weights; the decoder gets 1 - ``ctc``.

        Parameters
        ----------
        ctc, lm
            New weights of the CTC and of the language models; None leaves them.

        Raises
        ------
        ValueError
            As :func:`hmamba_asr.decoding.scorers.set_weights`. The weights stay as they were then.
        """
        set_weights([*self.scorers, *self.rescorers], ctc=ctc, lm=lm)
        self._update_limits()

    def weights(self) -> dict[str, float]:
        """Return the weight of the attention decoder and of each scorer, with those that rescore."""
        return {
            "attention": self.attention_weight,
            **{s.name: s.weight for s in [*self.scorers, *self.rescorers]},
        }

    def enable_rescoring(self) -> None:
        """Take the language models out of the search and let them rank its results instead.

        The score of a hypothesis is then the score of the search plus the weighted log-probability of its
        tokens and of the end of sentence, normalised by length as before. A hypothesis that is cut off at the
        step limit is scored with the end of sentence that it gets.

        Raises
        ------
        ValueError
            If there is no language model.
        """
        language_models = [s for s in self.scorers if s.can_rescore]
        if not language_models:
            raise ValueError(
                "there is no language model to rescore with; give --lm_folder, or a scorer of one in the"
                " YAML."
            )
        self.rescorers = language_models
        self.scorers = [s for s in self.scorers if not s.can_rescore]
        self._update_limits()

    def _update_limits(self) -> None:
        """Derive what depends on the scorers and their weights."""
        if self.bos_index == 0 and any(s.name == "transformerlm" for s in [*self.scorers, *self.rescorers]):
            raise ValueError(
                "bos is token 0, which SpeechBrain's TransformerLM takes for padding; use another token for"
                " bos."
            )
        self.attention_weight = 1.0 - sum(s.weight for s in self.scorers if s.name == "ctc")
        self.needs_attention = self.max_attn_shift is not None or any(s.needs_attention for s in self.scorers)
        limits = [s.max_steps for s in [*self.scorers, *self.rescorers]]
        self.max_steps = int(min(self.decoder.max_steps, *limits, math.inf))
        self.nbest = self.beam_size if self.rescorers else self.topk
        # The most that one more token can add to a score. With a negative weight there is no bound, so no
        # utterance ends early.
        self.max_gain = sum(s.weight * s.max_score if s.weight >= 0 else math.inf for s in self.scorers)

    @torch.no_grad()
    def forward(
        self, enc_states: Tensor, wav_len: Tensor
    ) -> tuple[list[list[int]] | Tensor, Tensor, Tensor, Tensor]:
        """Search with the signature of SpeechBrain's searchers.

        Parameters
        ----------
        enc_states
            Encoder states (B, T, d_model).
        wav_len
            Relative lengths (B,).

        Returns
        -------
        hypotheses
            The tokens of the best hypothesis of each utterance, as lists. With ``return_topk``, the ``topk``
            best as one padded tensor (B, topk, U).
        lengths
            Relative lengths of the hypotheses: (B,), or (B, topk).
        scores
            Scores of the hypotheses: (B,), or (B, topk).
        log_probs
            The decoder's weighted log-probability of each token: (B, U), or (B, topk, U).
        """
        found = self.search(enc_states, to_absolute(wav_len, enc_states.shape[1]))
        nothing = Hypothesis([], -math.inf, log_probs=[0.0])
        nbest = [h for best in found for h in [*best, *[nothing] * (self.topk - len(best))]]
        tokens = pad_sequence([torch.tensor([*h.tokens, self.eos_index]) for h in nbest], batch_first=True)
        log_probs = pad_sequence([torch.tensor(h.log_probs) for h in nbest], batch_first=True)
        lengths = torch.tensor([len(h.tokens) / tokens.shape[1] for h in nbest])
        scores = torch.tensor([h.score for h in nbest])
        tokens, log_probs, lengths, scores = (
            x.unflatten(0, (-1, self.topk)).to(enc_states.device)
            for x in (tokens, log_probs, lengths, scores)
        )
        if self.return_topk:
            return tokens, lengths, scores, log_probs
        return [best[0].tokens for best in found], lengths[:, 0], scores[:, 0], log_probs[:, 0]

    @torch.no_grad()
    def search(self, states: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Return the best hypotheses of each utterance.

        Parameters
        ----------
        states
            Encoder states (B, T, d_model).
        lengths
            Number of states of each utterance (B,). An utterance without states has the empty hypothesis.

        Returns
        -------
        list of list of Hypothesis
            Up to ``topk`` hypotheses of each utterance, best first.
        """
        trellis = Trellis(self._part_names(), self.eos_index)
        rows = lengths.nonzero().flatten()
        if rows.numel():
            longest = int(lengths.max())
            # Matrix products on a GPU are fastest with rows of a multiple of 16 bytes.
            extra = -longest % 8 if states.is_cuda else 0
            self._search(
                F.pad(states[rows, :longest], (0, 0, 0, extra)), lengths[rows], rows.tolist(), trellis
            )
        best = trellis.best(self.nbest)
        if self.rescorers and best:
            best = self._rescore(best, states.device)
        return [best.get(row, [Hypothesis([], 0.0, log_probs=[0.0])]) for row in range(len(lengths))]

    def _rescore(
        self, found: dict[int, list[Hypothesis]], device: torch.device
    ) -> dict[int, list[Hypothesis]]:
        """Add the language models' scores to the hypotheses and return the ``topk`` best."""
        sentences = [hypothesis.tokens for hypotheses in found.values() for hypothesis in hypotheses]
        totals = [
            s.score_sentences(sentences, bos=self.bos_index, eos=self.eos_index, device=device).tolist()
            for s in self.rescorers
        ]
        shares = iter(zip(*totals, strict=True))
        for hypotheses in found.values():
            for hypothesis in hypotheses:
                for scorer, share in zip(self.rescorers, next(shares), strict=True):
                    hypothesis.parts[scorer.name] = share
                    count = len(hypothesis.tokens) + 1 if self.length_normalization else 1
                    hypothesis.score += scorer.weight * share / count
        return {
            row: sorted(hypotheses, key=lambda h: -h.score)[: self.topk] for row, hypotheses in found.items()
        }

    def _search(self, states: Tensor, lengths: Tensor, utterances: list[int], trellis: Trellis) -> None:
        """Fill the trellis. Every length is 1 or more."""
        _refuse_nonfinite(states, lengths, utterances)
        beams, memory = self._start(states, lengths, len(trellis.part_names))
        trellis.utterances(utterances)
        parts = [part for part in (beams, memory, *self.scorers) if part is not None]
        steps = int(beams.limit.max())
        every = STEPS_BETWEEN_CHECKS.get(states.device.type, STEPS_BETWEEN_CHECKS_ON_GPU)
        run: Callable[[], Step] = lambda: self._step(beams, memory)  # noqa: E731
        # Finished utterances leave the batch once at least one in `shrink_at` is finished. This copies the
        # state of the others, and on a GPU it needs another graph.
        shrink_at = 4
        if self._use_cuda_graph(states.device):
            run, shrink_at = StepGraph(run, lambda: [pair for part in parts for pair in part.carried()]), 2
        for step in range(steps):
            self._prepare(beams, memory)
            trellis.add(run())
            if (step + 1) % every or step + 1 == steps:
                continue
            done = beams.done.tolist()
            if all(done):
                return
            if shrink_at * sum(done) >= len(done):
                kept = [row for row, over in enumerate(done) if not over]
                rows = torch.tensor(kept, device=states.device)
                for part in parts:
                    part.keep(rows)
                utterances = [utterances[row] for row in kept]
                trellis.utterances(utterances)

    def _use_cuda_graph(self, device: torch.device) -> bool:
        return self.cuda_graph and device.type == "cuda" and all(scorer.capturable for scorer in self.scorers)

    @torch.no_grad()
    def first_tokens(self, states: Tensor, lengths: Tensor) -> list[int]:
        """Return the best first token of each utterance after one step.

        It may be the end of sentence. Later steps may prefer another first token.

        Parameters
        ----------
        states
            Encoder states (B, T, d_model).
        lengths
            Number of states of each utterance (B,), 1 or more.

        Raises
        ------
        ValueError
            If an utterance has no states.
        """
        if int(lengths.min()) < 1:
            raise ValueError("an utterance has no encoder states and so no first token; leave it out.")
        _refuse_nonfinite(states, lengths, list(range(len(lengths))))
        beams, memory = self._start(states, lengths, len(self._part_names()))
        self._prepare(beams, memory)
        self._step(beams, memory)
        return beams.tokens[:, 0].tolist()

    def _part_names(self) -> list[str]:
        return [
            *(["attention"] if self.attention_weight > 0 else []),
            *(scorer.name for scorer in self.scorers),
        ]

    def _start(
        self, states: Tensor, lengths: Tensor, num_parts: int
    ) -> tuple[BeamState, StepperState | None]:
        """Prepare the decoder and the scorers for the first token."""
        memory = self.decoder.start(states, lengths) if self.attention_weight > 0 else None
        for scorer in self.scorers:
            scorer.start(states, lengths)
        batch, frames = len(lengths), lengths.double()
        zeros = torch.zeros(batch, 1, device=states.device)
        beams = BeamState(
            tokens=torch.full_like(zeros, self.bos_index, dtype=torch.long),
            sums=zeros,
            parts=zeros.unsqueeze(-1).expand(-1, -1, num_parts),
            peaks=zeros.long(),
            first_end=(frames * self.min_decode_ratio).long(),
            limit=(frames * self.max_decode_ratio).long().clamp(1, self.max_steps),
            steps=zeros[:, 0].long(),
            finished=zeros[:, 0].long(),
            best_scores=zeros.new_full((batch, self.nbest), -math.inf),
            done=zeros[:, 0].bool(),
        )
        return beams, memory

    def _prepare(self, beams: BeamState, memory: StepperState | None) -> None:
        """Do the host's part of a step."""
        for part in (memory, *self.scorers):
            if part is not None:
                part.prepare(beams.tokens.shape[1])

    def _step(self, beams: BeamState, memory: StepperState | None) -> Step:
        """Add one token to every hypothesis, after ``_prepare``; a CUDA graph can replay this part."""
        combined: Tensor | None = None
        attention: Tensor | None = None
        each: list[Tensor] = []
        weights: list[float] = []
        if memory is not None:
            hidden, attention = self.decoder.step(memory, beams.tokens, with_attention=self.needs_attention)
            each.append((at_least_float32(self.fc(hidden)) / self.temperature).log_softmax(-1))
            weights.append(self.attention_weight)
            combined = self._mask_scores(each[0] * self.attention_weight, beams, attention)
        candidates = None
        for scorer in self.scorers:
            if scorer.partial and candidates is None:
                assert combined is not None  # a partial scorer never scores alone
                count = max(1, min(self.num_candidates, combined.shape[-1]))
                candidates = combined.topk(count, -1).indices
            each.append(scorer.scores(beams.tokens, attention, candidates if scorer.partial else None))
            weights.append(scorer.weight)
            if combined is None:
                combined = each[-1] * scorer.weight
            else:
                combined = combined.add_(each[-1], alpha=scorer.weight)
        assert combined is not None
        combined[..., self.eos_index].masked_fill_((beams.first_end > beams.steps).unsqueeze(1), -math.inf)
        if self.blank is not None:
            combined[..., self.blank] = -math.inf

        vocab = combined.shape[-1]
        values, index = self._top_hypotheses((beams.sums.unsqueeze(-1) + combined).flatten(1))
        parents, tokens = index // vocab, index % vocab
        shares = [scores.flatten(1).gather(1, index) for scores in each]
        if memory is not None:
            memory.reorder(parents)
        for place, scorer in enumerate(self.scorers, start=len(each) - len(self.scorers)):
            exact = scorer.advance(parents, tokens)
            shares[place] = shares[place] if exact is None else exact.to(shares[place].dtype)
        gained = sum(weight * share for weight, share in zip(weights, shares, strict=True))
        sums = (beams.sums.gather(1, parents) + gained).masked_fill(values == -math.inf, -math.inf)
        at = parents.unsqueeze(-1).expand(-1, -1, beams.parts.shape[-1])
        beams.parts = beams.parts.gather(1, at) + torch.stack(shares, -1)
        beams.peaks = beams.peaks.gather(1, parents)
        beams.tokens, beams.sums, beams.steps = tokens, sums, beams.steps + 1
        scores = sums / beams.steps.unsqueeze(1) if self.length_normalization else sums
        accepted = self._accept(beams, scores)
        log_probs = shares[0] * weights[0] if memory is not None else torch.zeros_like(scores)
        return Step(tokens, parents, scores, log_probs, beams.parts, accepted)

    def _mask_scores(self, log_probs: Tensor, beams: BeamState, attention: Tensor | None) -> Tensor:
        """Set unlikely ends of sentence, and all tokens after too large an attention shift, to -inf."""
        if self.max_attn_shift is not None:
            assert attention is not None
            peaks = attention.argmax(-1)
            far = (peaks > beams.peaks + self.max_attn_shift) | (peaks <= beams.peaks - self.max_attn_shift)
            far &= (~far & beams.sums.isfinite()).any(1, keepdim=True)
            log_probs = log_probs.masked_fill(far.unsqueeze(-1), -math.inf)
            beams.peaks = peaks
        if self.eos_threshold is not None:
            unlikely = log_probs[..., self.eos_index] <= self.eos_threshold * log_probs.amax(-1)
            log_probs[..., self.eos_index].masked_fill_(unlikely, -math.inf)
        return log_probs

    def _top_hypotheses(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ``beam_size`` best of (B, K x vocab), padded with -inf if there are fewer."""
        if missing := max(0, self.beam_size - totals.shape[1]):
            values, index = totals.sort(-1, descending=True)
            return F.pad(values, (0, missing), value=-math.inf), F.pad(index, (0, missing))
        return totals.topk(self.beam_size, -1)

    def _accept(self, beams: BeamState, scores: Tensor) -> Tensor:
        """Return which hypotheses (B, K) become results, and update what is finished, open and done."""
        live = beams.sums.isfinite() & ~beams.done.unsqueeze(1)
        ends = live & (beams.tokens == self.eos_index)
        cut = live & ~ends & (beams.limit == beams.steps).unsqueeze(1)
        rank = beams.finished.unsqueeze(1) + ends.cumsum(1)
        accepted = ends & (rank <= self.beam_size) | cut & (rank[:, -1:] + cut.cumsum(1) <= self.beam_size)
        beams.finished = beams.finished + accepted.sum(1)
        beams.best_scores = (
            torch.cat([beams.best_scores, scores.masked_fill(~accepted, -math.inf)], 1)
            .topk(self.nbest, -1)
            .values
        )
        beams.sums = beams.sums.masked_fill(beams.tokens == self.eos_index, -math.inf)
        beams.done = beams.done | (beams.finished >= self.beam_size) | (beams.limit <= beams.steps)
        if math.isfinite(self.max_gain):
            reachable = beams.sums.amax(1)
            if self.length_normalization:
                # The best case: every further token scores 0, up to the step limit.
                reachable = reachable / beams.limit
            else:
                reachable = reachable + self.max_gain * (beams.limit - beams.steps)
            beams.done = beams.done | (beams.best_scores[:, -1] >= reachable)
        return accepted


def _refuse_nonfinite(states: Tensor, lengths: Tensor, utterances: list[int]) -> None:
    """Raise ValueError if a state inside an utterance is not finite."""
    bad = (~states.isfinite().all(-1) & valid_mask(lengths, states.shape[1])).any(1)
    if bad.any():
        named = ", ".join(str(utterances[row]) for row in bad.nonzero().flatten().tolist())
        raise ValueError(
            f"the encoder states of utterance {named} of the batch are not finite, so it cannot be decoded."
        )
