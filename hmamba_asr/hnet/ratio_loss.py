"""H-Net's ratio loss: it teaches a router how many chunks to make."""

from __future__ import annotations

from torch import Tensor


def ratio_loss(
    chosen_fraction: Tensor, mean_prob: Tensor, *, target_ratio: float, current_ratio: float | None = None
) -> Tensor:
    """Return N / (N - 1) ((N - 1) F G + (1 - F)(1 - G)) of each utterance (B,): H-Net, eq. 10.

    The loss is defined for each utterance, so it does not depend on batch mates and averages over batches,
    ranks and accumulation steps as the other losses do. Where F = G it is least at F = G = 1 / N, where it is
    1.

    Parameters
    ----------
    chosen_fraction : Tensor
        F (B,): fraction of frames that the router itself made boundaries. It has no gradient.
    mean_prob : Tensor
        G (B,): mean boundary probability, which has a gradient.
    target_ratio : float
        Frames per chunk (N), 1 or more. At 1 there is nothing to learn and the loss is 0.
    current_ratio : float, optional
        N inside the bracket while the target is being raised. The factor in front keeps the final N, because
        near N = 1 it would have no bound.
    """
    if target_ratio == 1:
        return mean_prob.new_zeros(mean_prob.shape)
    n = target_ratio if current_ratio is None else current_ratio
    bracket = (n - 1) * chosen_fraction * mean_prob + (1 - chosen_fraction) * (1 - mean_prob)
    return target_ratio / (target_ratio - 1) * bracket
