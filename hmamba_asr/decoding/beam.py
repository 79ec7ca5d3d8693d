"""Searches behind one call: ``search(output: ASROutput) -> token ids of the best hypothesis of each
utterance``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from speechbrain.decoders.scorer import ScorerBuilder
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hmamba_asr.decoding.ctc_prefix import ctc_greedy
from hmamba_asr.decoding.hypotheses import Beams, Hypothesis, Step, Trellis
from hmamba_asr.decoding.scorers import (
    InternalLM,
    Scorer,
    at_least_float32,
    load_language_model,
    read_scorers,
    weigh,
)
from hmamba_asr.decoding.step_graph import StepGraph
from hmamba_asr.decoding.stepper import StepperState, decoder_stepper
from hmamba_asr.lengths import to_absolute, to_relative, valid_mask
from hmamba_asr.models.asr import ASROutput

LM_FUSIONS = ("shallow", "rescore", "ilm")
STEPS_BETWEEN_CHECKS = {
    "cpu": 1
}  # elsewhere 4: asking a GPU whether a search is over makes the host wait for it


class GreedySearch(nn.Module):
    """Greedy decoding of the CTC head."""

    def __init__(self, *, blank: int):
        super().__init__()
        self.blank = blank

    @torch.no_grad()
    def forward(self, output: ASROutput) -> list[list[int]]:
        return ctc_greedy(output.ctc_logits, output.encoded.lengths, blank=self.blank)

    def first_tokens(self, output: ASROutput) -> list[int | None]:
        """The first token of each utterance, None where all is blank; there is nothing to be had before the
        rest."""
        return [tokens[0] if tokens else None for tokens in self(output)]


class JointBeamSearcher(nn.Module):
    """Beam search of an attention decoder joined by CTC, language models and a length bonus.

    Takes the arguments of SpeechBrain's ``S2STransformerBeamSearcher``, scorers in a ``ScorerBuilder`` among
    them, and finds its hypotheses (Kim et al. 2017, "Joint CTC-Attention based End-to-End Speech
    Recognition"; rules about the end of sentence and attention shifts of Hannun et al. 2019,
    https://arxiv.org/abs/1904.02619). Where it differs:

    - Decoder and language model go on from what they computed for the prefix, CTC scores are a matrix
      product.
    - Step limits are each utterance's own and within the positions that the models have; SpeechBrain takes
      those of the longest utterance of a batch, whose results then depend on batch mates.
    - An utterance is also done when no live hypothesis can beat its best ``topk`` finished ones any more:
      scores of further tokens are at most 0 (or a positive length bonus).
    - ``max_attn_shift`` and the CTC window follow the newest token's attention. A shift blocks hypotheses,
      unless it would block all of an utterance.
    - On a GPU a step is a CUDA graph (:class:`~hmamba_asr.decoding.step_graph.StepGraph`), unless
      ``cuda_graph`` is false or a scorer works on the host.
    - Language models can be left out of the search and rank its ``beam_size`` best results instead:
      :meth:`rescore`.

    Results hold on to two of SpeechBrain's rules: ``beam_size`` finished hypotheses end an utterance, and one
    that is open at the step limit gives its last token up for the end of sentence.

    Raises
    ------
    ValueError
        For models or scorers that it cannot run, a length bonus with length normalisation, equal special
        tokens, a bad topk, a begin of sentence that a Transformer LM does not see (token 0).
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
        """``minus_inf`` is SpeechBrain's and not used: what is ruled out is -inf here."""
        super().__init__()
        self.model, self.fc = modules
        self.bos_index, self.eos_index, self.beam_size, self.topk = bos_index, eos_index, beam_size, topk
        self.min_decode_ratio, self.max_decode_ratio = min_decode_ratio, max_decode_ratio
        self.temperature, self.return_topk, self.length_normalization = (
            temperature,
            return_topk,
            length_normalization,
        )
        self.eos_threshold = eos_threshold if using_eos_threshold else None
        self.max_attn_shift = max_attn_shift if using_max_attn_shift else None
        self.cuda_graph = cuda_graph
        self.decoder = decoder_stepper(self.model)
        self.scorers, self.rescorers = read_scorers(scorer), []
        self.candidates = int(
            beam_size * (scorer.scorer_beam_scale if scorer is not None else 2)
        )  # SpeechBrain's default
        ctc = next((s for s in self.scorers if s.name == "ctc"), None)
        self.blocked = ctc.blank if ctc else None
        if ctc and len({bos_index, eos_index, ctc.blank}) < 3:
            raise ValueError(
                f"blank ({ctc.blank}), bos ({bos_index}) and eos ({eos_index}) must be three different tokens."
            )
        if not 1 <= topk <= beam_size:
            raise ValueError(f"topk is {topk} and beam_size {beam_size}; topk must be from 1 to beam_size.")
        if length_normalization and any(s.name == "length" and s.weight for s in self.scorers):
            raise ValueError(
                "a length bonus and length_normalization exclude each other; leave one of them out."
            )
        self._look_at_scorers()

    def add(self, scorer: Scorer) -> None:
        """One scorer more."""
        self.scorers.insert(len(self.scorers) if scorer.partial else 0, scorer)
        self._look_at_scorers()

    def weigh(self, *, ctc: float | None = None, lm: float | None = None) -> None:
        """Other weights from now on, the decoder's 1 - ``ctc``; see
        :func:`~hmamba_asr.decoding.scorers.weigh`."""
        weigh([*self.scorers, *self.rescorers], ctc=ctc, lm=lm)
        self._look_at_scorers()

    def weights(self) -> dict[str, float]:
        """Of attention and of each scorer, rescoring language models among them."""
        return {
            "attention": self.attention_weight,
            **{s.name: s.weight for s in [*self.scorers, *self.rescorers]},
        }

    def rescore(self) -> None:
        """Search without language models from now on, and let them rank what was found.

        A hypothesis' score is then the search's with the weighted log-probability of its tokens and the end
        of sentence added, normalised by length as before. One that is open at the step limit is scored with
        the end of sentence that it gets.

        Raises
        ------
        ValueError
            If there is no language model.
        """
        self.rescorers = [s for s in self.scorers if s.rescores]
        self.scorers = [s for s in self.scorers if not s.rescores]
        if not self.rescorers:
            raise ValueError(
                "there is no language model to rescore with; give --lm_folder, or a scorer of one in the YAML."
            )
        self._look_at_scorers()

    def _look_at_scorers(self) -> None:
        if self.bos_index == 0 and any(s.name == "transformerlm" for s in [*self.scorers, *self.rescorers]):
            raise ValueError(
                "bos is token 0, which SpeechBrain's TransformerLM takes for padding: it would begin from nothing."
            )
        self.attention_weight = 1.0 - sum(s.weight for s in self.scorers if s.name == "ctc")
        self.needs_attention = self.max_attn_shift is not None or any(s.needs_attention for s in self.scorers)
        self.max_steps = int(
            min(self.decoder.max_steps, *[s.max_steps for s in [*self.scorers, *self.rescorers]], math.inf)
        )
        self.nbest = self.beam_size if self.rescorers else self.topk
        # The most that one more token can add; infinite (no early end) where a negative weight turns scores
        # around.
        self.highest = sum(s.weight * s.highest if s.weight >= 0 else math.inf for s in self.scorers)

    @torch.no_grad()
    def forward(self, enc_states: Tensor, wav_len: Tensor):
        """SpeechBrain's call: states (B, T, d_model) and relative lengths (B,) -> hypotheses, lengths,
        scores, log-probabilities.

        The best of each utterance, hypotheses as lists; with ``return_topk`` the ``topk`` best in padded
        tensors (B, topk, ...).
        """
        found = self.search(enc_states, to_absolute(wav_len, enc_states.shape[1]))
        nbest = [
            h
            for hs in found
            for h in [*hs, *[Hypothesis([], -math.inf, log_probs=[0.0])] * (self.topk - len(hs))]
        ]
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
        return [hs[0].tokens for hs in found], lengths[:, 0], scores[:, 0], log_probs[:, 0]

    @torch.no_grad()
    def search(self, states: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """The ``topk`` best hypotheses of each utterance, best first, fewer if there are fewer.

        states (B, T, d_model) with lengths (B,) in frames; an utterance without frames has the empty
        hypothesis.
        """
        trellis = Trellis(self._part_names(), self.eos_index)
        rows = lengths.nonzero().flatten()
        if rows.numel():
            longest = int(lengths.max())
            # Rows of 16 bytes are what a GPU's matrix products read fastest.
            extra = -longest % 8 if states.is_cuda else 0
            self._search(
                F.pad(states[rows, :longest], (0, 0, 0, extra)), lengths[rows], rows.tolist(), trellis
            )
        best = trellis.best(self.nbest)
        if self.rescorers and best:
            best = self._rescored(best, states.device)
        return [best.get(row, [Hypothesis([], 0.0, log_probs=[0.0])]) for row in range(len(lengths))]

    def _rescored(
        self, found: dict[int, list[Hypothesis]], device: torch.device
    ) -> dict[int, list[Hypothesis]]:
        """The ``topk`` best of each utterance's hypotheses, now with the language models' scores."""
        sentences = [hypothesis.tokens for hypotheses in found.values() for hypothesis in hypotheses]
        totals = [
            s.sentences(sentences, bos=self.bos_index, eos=self.eos_index, device=device).tolist()
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
        """Fill the trellis; every length is 1 or more."""
        _refuse_nonfinite(states, lengths, utterances)
        beams, memory = self._start(states, lengths, len(trellis.part_names))
        trellis.utterances(utterances)
        parts = [part for part in (beams, memory, *self.scorers) if part is not None]
        steps, every = int(beams.limit.max()), STEPS_BETWEEN_CHECKS.get(states.device.type, 4)
        run, worthwhile = (lambda: self._step(beams, memory)), 4
        if self._can_graph(states.device):
            run, worthwhile = StepGraph(run, lambda: [pair for part in parts for pair in part.carried()]), 2
        for step in range(steps):
            self._prepare(beams, memory)
            trellis.add(run())
            if (step + 1) % every or step + 1 == steps:
                continue
            done = beams.done.tolist()
            if all(done):
                return
            if worthwhile * sum(done) >= len(
                done
            ):  # worth the copy of what the others need, and another graph
                kept = [row for row, over in enumerate(done) if not over]
                rows = torch.tensor(kept, device=states.device)
                for part in parts:
                    part.keep(rows)
                utterances = [utterances[row] for row in kept]
                trellis.utterances(utterances)

    def _can_graph(self, device: torch.device) -> bool:
        return self.cuda_graph and device.type == "cuda" and all(scorer.on_device for scorer in self.scorers)

    @torch.no_grad()
    def first_tokens(self, states: Tensor, lengths: Tensor) -> list[int]:
        """The best first token of each utterance after one step, the end of sentence among them; later steps
        may prefer another beginning. states (B, T, d_model) with lengths (B,) of 1 or more.

        Raises
        ------
        ValueError
            If an utterance has no states.
        """
        if int(lengths.min()) < 1:
            raise ValueError("an utterance has no encoder states, so it has no first token; leave it out.")
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

    def _start(self, states: Tensor, lengths: Tensor, num_parts: int) -> tuple[Beams, StepperState | None]:
        """Decoder and scorers in front of the first token."""
        memory = self.decoder.start(states, lengths) if self.attention_weight > 0 else None
        for scorer in self.scorers:
            scorer.start(states, lengths)
        batch, frames = len(lengths), lengths.double()
        zeros = torch.zeros(batch, 1, device=states.device)
        beams = Beams(
            tokens=torch.full_like(zeros, self.bos_index, dtype=torch.long),
            sums=zeros,
            parts=zeros.unsqueeze(-1).expand(-1, -1, num_parts),
            peaks=zeros.long(),
            first_end=(frames * self.min_decode_ratio).long(),
            limit=(frames * self.max_decode_ratio).long().clamp(1, self.max_steps),
            steps=zeros[:, 0].long(),
            finished=zeros[:, 0].long(),
            best=zeros.new_full((batch, self.nbest), -math.inf),
            done=zeros[:, 0].bool(),
        )
        return beams, memory

    def _prepare(self, beams: Beams, memory: StepperState | None) -> None:
        """The host's part of a step."""
        for part in (memory, *self.scorers):
            if part is not None:
                part.prepare(beams.tokens.shape[1])

    def _step(self, beams: Beams, memory: StepperState | None) -> Step:
        """One more token for every hypothesis, after ``_prepare``: the device's part, which a CUDA graph can
        repeat."""
        combined, attention, each, weights = None, None, [], []
        if memory is not None:
            hidden, attention = self.decoder.step(memory, beams.tokens, with_attention=self.needs_attention)
            each, weights = (
                [(at_least_float32(self.fc(hidden)) / self.temperature).log_softmax(-1)],
                [self.attention_weight],
            )
            combined = self._rule_out(each[0] * self.attention_weight, beams, attention)
        candidates = None
        for scorer in self.scorers:
            if scorer.partial and candidates is None:
                candidates = combined.topk(max(1, min(self.candidates, combined.shape[-1])), -1).indices
            each.append(scorer.scores(beams.tokens, attention, candidates if scorer.partial else None))
            weights.append(scorer.weight)
            combined = (
                each[-1] * scorer.weight if combined is None else combined.add_(each[-1], alpha=scorer.weight)
            )
        combined[..., self.eos_index].masked_fill_((beams.first_end > beams.steps).unsqueeze(1), -math.inf)
        if self.blocked is not None:
            combined[..., self.blocked] = -math.inf

        vocab = combined.shape[-1]
        values, index = self._top((beams.sums.unsqueeze(-1) + combined).flatten(1))
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
        accepted = self._finish(beams, scores)
        log_probs = shares[0] * weights[0] if memory is not None else torch.zeros_like(scores)
        return Step(tokens, parents, scores, log_probs, beams.parts, accepted)

    def _rule_out(self, log_probs: Tensor, beams: Beams, attention: Tensor | None) -> Tensor:
        """-inf where the attention jumps too far, and for an end of sentence that is not likely enough."""
        if self.max_attn_shift is not None:
            peaks = attention.argmax(-1)
            far = (peaks > beams.peaks + self.max_attn_shift) | (peaks <= beams.peaks - self.max_attn_shift)
            far &= (~far & beams.sums.isfinite()).any(1, keepdim=True)
            log_probs = log_probs.masked_fill(far.unsqueeze(-1), -math.inf)
            beams.peaks = peaks
        if self.eos_threshold is not None:
            unlikely = log_probs[..., self.eos_index] <= self.eos_threshold * log_probs.amax(-1)
            log_probs[..., self.eos_index].masked_fill_(unlikely, -math.inf)
        return log_probs

    def _top(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """The ``beam_size`` best of (B, K x vocab), filled up with -inf if there are fewer."""
        if missing := max(0, self.beam_size - totals.shape[1]):
            values, index = totals.sort(-1, descending=True)
            return F.pad(values, (0, missing), value=-math.inf), F.pad(index, (0, missing))
        return totals.topk(self.beam_size, -1)

    def _finish(self, beams: Beams, scores: Tensor) -> Tensor:
        """Which hypotheses (B, K) are results now; updates what is finished, open and done."""
        live = beams.sums.isfinite() & ~beams.done.unsqueeze(1)
        ends = live & (beams.tokens == self.eos_index)
        cut = live & ~ends & (beams.limit == beams.steps).unsqueeze(1)
        rank = beams.finished.unsqueeze(1) + ends.cumsum(1)
        accepted = ends & (rank <= self.beam_size) | cut & (rank[:, -1:] + cut.cumsum(1) <= self.beam_size)
        beams.finished = beams.finished + accepted.sum(1)
        beams.best = (
            torch.cat([beams.best, scores.masked_fill(~accepted, -math.inf)], 1).topk(self.nbest, -1).values
        )
        beams.sums = beams.sums.masked_fill(beams.tokens == self.eos_index, -math.inf)
        beams.done = beams.done | (beams.finished >= self.beam_size) | (beams.limit <= beams.steps)
        if math.isfinite(self.highest):
            reachable = beams.sums.amax(1)
            if self.length_normalization:
                reachable = reachable / beams.limit  # at most: nothing lost on the longest way there is
            else:
                reachable = reachable + self.highest * (beams.limit - beams.steps)
            beams.done = beams.done | (beams.best[:, -1] >= reachable)
        return accepted


def _refuse_nonfinite(states: Tensor, lengths: Tensor, utterances: list[int]) -> None:
    bad = (~states.isfinite().all(-1) & valid_mask(lengths, states.shape[1])).any(1)
    if bad.any():
        named = ", ".join(str(utterances[row]) for row in bad.nonzero().flatten().tolist())
        raise ValueError(
            f"the encoder states of utterance {named} of the batch are not finite: there is nothing to decode."
        )


class BeamSearch(nn.Module):
    """The search of a recogniser: a :class:`JointBeamSearcher`, or one of SpeechBrain's, which lets batch
    mates matter.

    ``lm`` names the language model that the scorers hold, so that it follows the search to its device. Or
    ``lm_folder``, what train_lm.py or train_ngram.py exported, adds one with ``lm_weight``. ``lm_fusion``
    says how language models have their say:

    - ``shallow``: in the search, beside the decoder.
    - ``rescore``: only on the search's ``beam_size`` best results (:meth:`JointBeamSearcher.rescore`).
    - ``ilm``: in the search, with the decoder's internal language model taken off by ``internal_lm_weight``
      (:class:`~hmamba_asr.decoding.scorers.InternalLM`).

    Raises
    ------
    ValueError
        For an unknown ``lm_fusion``, ``rescore`` and ``ilm`` without a language model or with SpeechBrain's
        searcher, ``ilm`` without an ``internal_lm_weight``, and one that nothing uses, as an ``lm_weight``
        without ``lm_folder`` where the scorers hold a language model.
    """

    def __init__(
        self,
        *,
        searcher: nn.Module,
        lm: nn.Module | None = None,
        lm_folder: str | None = None,
        lm_weight: float = 0.0,
        lm_fusion: str = "shallow",
        internal_lm_weight: float | None = None,
    ):
        super().__init__()
        if lm_fusion not in LM_FUSIONS:
            raise ValueError(f"lm_fusion is '{lm_fusion}'; choose one of {', '.join(LM_FUSIONS)}.")
        if internal_lm_weight is not None and lm_fusion != "ilm":
            raise ValueError(
                f"internal_lm_weight is {internal_lm_weight} and lm_fusion {lm_fusion}; set lm_fusion: ilm."
            )
        if internal_lm_weight is None and lm_fusion == "ilm":
            raise ValueError(
                "lm_fusion is ilm without an internal_lm_weight; set one, for example {lm_fusion: ilm, internal_lm_weight: 0.1}."
            )
        if (lm_folder or lm_fusion != "shallow") and not isinstance(searcher, JointBeamSearcher):
            raise ValueError(
                f"lm_folder and lm_fusion need JointBeamSearcher; the searcher is a {type(searcher).__name__}."
            )
        if (
            lm_weight
            and not lm_folder
            and isinstance(searcher, JointBeamSearcher)
            and any(s.rescores for s in searcher.scorers)
        ):
            raise ValueError(
                f"lm_weight is {lm_weight} and there is no lm_folder, whose model it would weigh; the scorers' language model "
                "has its weight among theirs: {searcher: {scorer: {weights: {transformerlm: ...}}}}."
            )
        if lm_folder:
            scorer = load_language_model(lm_folder, weight=lm_weight, vocab_size=searcher.fc.w.out_features)
            searcher.add(scorer)
            lm = scorer.model
        if lm_fusion != "shallow" and not any(s.rescores for s in searcher.scorers):
            raise ValueError(
                f"lm_fusion is {lm_fusion} and the search has no language model; give --lm_folder, or its scorer in the YAML."
            )
        if lm_fusion == "rescore":
            searcher.rescore()
        elif lm_fusion == "ilm":
            temperature = searcher.temperature
            searcher.add(
                InternalLM(searcher.decoder, searcher.fc, weight=internal_lm_weight, temperature=temperature)
            )
        self.lm, self.lm_folder = lm, lm_folder
        # Not a submodule: the searcher holds the recogniser itself, whose device and mode are the Brain's
        # business.
        object.__setattr__(self, "searcher", searcher)

    @torch.no_grad()
    def forward(self, output: ASROutput) -> list[list[int]]:
        states, lengths = self._states(output)
        hypotheses, _, _, _ = self.searcher(states, to_relative(lengths, states.shape[1]).float())
        return hypotheses

    def first_tokens(self, output: ASROutput) -> list[int]:
        """See :meth:`JointBeamSearcher.first_tokens`.

        Raises
        ------
        ValueError
            If the searcher is one of SpeechBrain's, which cannot stop after a step, or an utterance has no
            states.
        """
        if not isinstance(self.searcher, JointBeamSearcher):
            raise ValueError(
                f"{type(self.searcher).__name__} cannot stop after its first step; use JointBeamSearcher."
            )
        return self.searcher.first_tokens(*self._states(output))

    def _states(self, output: ASROutput) -> tuple[Tensor, Tensor]:
        if self.lm is not None:
            self.lm.eval()
        lengths = output.encoded.lengths
        return output.encoded.states[
            :, : int(lengths.max())
        ].float(), lengths  # the searcher's masks allow no frames past it
