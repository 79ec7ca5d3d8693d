"""H-Net's dechunking: the smoothing of chunk states, and the upsampling from chunks to frames.

Shapes: B utterances, T frames, M chunks, D the width of the states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmamba_asr.lengths import zero_padding
from hmamba_asr.modules.chunk_ops import Chunks
from hmamba_asr.ops.ema import ema


def smooth_chunks(states: Tensor, chunks: Chunks, *, clamp: float = 1e-4) -> Tensor:
    """Return a moving average over chunk states (B, M, D): H-Net, eq. 5.

    Each chunk is weighted by the boundary probability p of its first frame, so an unsure chunk borrows from
    the chunk before, and the probability gets a gradient.

    Probabilities are kept ``clamp`` away from 0 and 1, where the average would keep all of the past or none.
    """
    weights = chunks.prob.gather(1, chunks.starts)
    # p = 1 (the first frame; all frames if N = 1): the chunk stays exactly as it is.
    sure = weights == 1.0
    weights = torch.where(sure, weights, weights.clamp(clamp, 1.0 - clamp))
    return ema(states, weights, lengths=chunks.num_chunks)


def upsample_chunks(states: Tensor, chunks: Chunks, lengths: Tensor) -> Tensor:
    """Return the chunk states (B, M, D) at every frame of their chunks (B, T, D), zero past the end.

    H-Net, eq. 6 to 9. A straight-through estimator multiplies each frame by the confidence in its decision:
    by 1 in the forward pass, and with the gradient of p_t at boundaries and of 1 - p_t elsewhere.
    """
    frames = states.gather(1, chunks.frame_to_chunk.unsqueeze(-1).expand(-1, -1, states.shape[2]))
    confidence = torch.where(chunks.mask, chunks.prob, 1.0 - chunks.prob)
    straight_through = confidence + (1.0 - confidence).detach()
    return zero_padding(frames * straight_through.unsqueeze(-1).to(frames.dtype), lengths)
