"""H-Net's chunker: a learned router compares neighbouring frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from speechbrain.nnet.linear import Linear
from torch import Tensor, nn

from hmamba_asr.hnet.dechunking import smooth_chunks
from hmamba_asr.lengths import zero_padding
from hmamba_asr.modules.chunk_ops import Chunks, add_boundaries, gather_chunks
from hmamba_asr.modules.chunkers import AdaptiveChunker

THRESHOLD = 0.5  # a frame at least this likely to begin a chunk does


class HNetChunker(AdaptiveChunker):
    """H-Net's routing (eq. 4): a chunk begins at the first frame and where p_t >= 0.5.

    The probability p_t = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2 says how much a frame differs from the one
    before. Chunks are smoothed with their probabilities
    (:func:`~hmamba_asr.hnet.dechunking.smooth_chunks`), and
    :func:`~hmamba_asr.hnet.ratio_loss.ratio_loss` holds their number near ``target_ratio`` frames per chunk.
    :mod:`hmamba_asr.hnet` lists what is added to the published form.

    Parameters
    ----------
    d_model : int
        Width of the frames.
    target_ratio : float
        Frames per chunk (N). At 1 every frame is a chunk and there is no router.
    lr_multiplier : float
        Factor of the learning rate of the router's weights.

    Raises
    ------
    ValueError
        If ``target_ratio`` is below 1 or ``lr_multiplier`` not above 0.
    """

    kind = "router"

    def __init__(self, *, d_model: int, target_ratio: float, lr_multiplier: float = 1.0):
        super().__init__(target_ratio)
        if not lr_multiplier > 0:
            raise ValueError(f"lr_multiplier must be above 0, not {lr_multiplier}.")
        if self.target_ratio == 1:
            return
        # Both start as the identity: at first, boundaries fall where neighbours differ.
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        for projection in (self.query, self.key):
            nn.init.eye_(projection.weight)
            projection.weight.lr_multiplier = lr_multiplier  # type: ignore[attr-defined]  # read by the optimizer's builder

    @property
    def has_router(self) -> bool:
        return self.target_ratio > 1

    def boundary_prob(self, x: Tensor) -> Tensor:
        """Return p_t of all frames but the first, (B, T, D) -> (B, T - 1).

        If both projections are exactly zero, as for digital silence, the frames are alike and p_t is 0.
        """
        query = F.linear(x[:, :-1], self.query.weight.to(x.dtype))
        key = F.linear(x[:, 1:], self.key.weight.to(x.dtype))
        cosine = F.cosine_similarity(query, key, dim=-1)
        both_zero = (query == 0).all(-1) & (key == 0).all(-1)
        return ((1 - torch.where(both_zero, 1.0, cosine)) / 2).clamp(0.0, 1.0)

    def chunk(self, x: Tensor, lengths: Tensor, min_chunks: Tensor | None, ctc_head: Linear | None) -> Chunks:
        x = zero_padding(x, lengths)
        prob = zero_padding(F.pad(self.boundary_prob(x), (1, 0), value=1.0), lengths)
        mask = prob >= THRESHOLD
        num_chosen = mask.sum(1)
        if min_chunks is not None:
            mask = add_boundaries(prob, mask, lengths, min_chunks)
        return gather_chunks(x, prob, mask, num_chosen=num_chosen)

    def smooth(self, states: Tensor, chunks: Chunks) -> Tensor:
        return smooth_chunks(states, chunks)
