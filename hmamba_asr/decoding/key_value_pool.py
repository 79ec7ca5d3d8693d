"""Self-attention keys and values of all hypotheses of a beam search, each stored once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyValuePool:
    """Keys and values of each token once, however many hypotheses continue it.

    A slot holds the keys and values of one token in all layers. Each step takes one slot for each hypothesis.
    The mask ``ancestors`` says which slots a hypothesis attends to. When the beam is reordered, rows of this
    mask move and keys and values stay. When the pool is full, slots that no hypothesis descends from become
    free again; if that frees less than half, the pool grows.

    A step calls ``reserve``, which is the host's part, then ``append``, then ``write`` for each layer. The
    latter two do the same work at the same addresses in every step, so a CUDA graph can replay them. They
    then attend to empty slots too, which are masked.

    Parameters
    ----------
    num_layers
        Number of layers.
    first_capacity
        Number of slots at first.
    whole
        Whether attention reads all slots, as a CUDA graph needs, or ends at the last slot taken, which is
        faster on a CPU. The default depends on the device.

    Attributes
    ----------
    ancestors
        (B, hypotheses, capacity). The slots that a hypothesis attends to; None before the first step.
    taken
        (1,). Number of slots taken, on the device; None before the first step.
    slots, capacity
        Number of slots taken and available, on the host.
    """

    def __init__(self, num_layers: int, first_capacity: int = 256, whole: bool | None = None):
        self.num_layers, self.capacity, self.whole = num_layers, first_capacity, whole
        self.slots = 0
        self.taken: Tensor | None = None
        self.ancestors: Tensor | None = None
        self._newest: Tensor | None = None  # the slots that the current step fills
        # (layers, 2, B, heads, capacity, d_head); made when the shape of the keys is known
        self._buffer: Tensor | None = None

    def reserve(self, hypotheses: int) -> None:
        """Make room for the next token of each hypothesis; this may wait for the device."""
        if self.slots + hypotheses > self.capacity:
            self._make_room(hypotheses)
        self.slots += hypotheses

    def append(self, visible: Tensor) -> Tensor:
        """Give each hypothesis the slot reserved for it.

        Parameters
        ----------
        visible
            (B, hypotheses). False if no token may attend to the new one.

        Returns
        -------
        Tensor
            The slots that each hypothesis attends to (B, hypotheses, slots).
        """
        batch, hypotheses = visible.shape
        if self.ancestors is None or self.taken is None:
            self.whole = visible.is_cuda if self.whole is None else self.whole
            self.ancestors = visible.new_zeros(batch, hypotheses, self.capacity)
            self.taken = torch.zeros(1, dtype=torch.long, device=visible.device)
        self._newest = self.taken + torch.arange(hypotheses, device=visible.device)
        self.ancestors = self.ancestors.index_copy(2, self._newest, torch.diag_embed(visible))
        self.taken = self.taken + hypotheses
        return self.ancestors[..., : self._num_read]

    def write(self, layer: int, keys_values: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Fill the newest slots of a layer and return its keys and values.

        Parameters
        ----------
        layer
            Index of the layer.
        keys_values
            Keys and values of the newest tokens (B, hypotheses, 2 d_model).
        heads
            Number of heads, the same in all layers.

        Returns
        -------
        keys, values
            (B, heads, slots, d_head).
        """
        new = keys_values.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        if self._buffer is None:
            self._buffer = new.new_zeros(self.num_layers, *new.shape[:3], self.capacity, new.shape[-1])
        assert self._newest is not None  # append comes first
        keys, values = self._buffer[layer].index_copy_(3, self._newest, new)[..., : self._num_read, :]
        return keys, values

    def reorder(self, parents: Tensor) -> None:
        """Make hypothesis i of each utterance continue ``parents[:, i]``; parents is (B, hypotheses)."""
        assert self.ancestors is not None
        self.ancestors = self.ancestors.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.capacity))

    def keep(self, rows: Tensor) -> None:
        """Keep only the given utterances."""
        assert self.ancestors is not None and self._buffer is not None
        self.ancestors = self.ancestors[rows]
        self._buffer = self._buffer[:, :, rows]

    @property
    def _num_read(self) -> int:
        """Number of slots that attention reads."""
        return self.capacity if self.whole else self.slots

    def _make_room(self, wanted: int) -> None:
        """Free the slots without descendants, or grow if too few would be free."""
        if self._buffer is None:  # more hypotheses at once than the first capacity
            self.capacity = max(2 * self.capacity, wanted)
            return
        assert self.ancestors is not None and self.taken is not None
        used = self.ancestors.any(1)
        count = int(used.sum(1).max())
        if 2 * (count + wanted) > self.capacity:
            larger = max(2 * self.capacity, self.slots + wanted)
            self._buffer = F.pad(self._buffer, (0, 0, 0, larger - self.capacity))
            self.ancestors = F.pad(self.ancestors, (0, larger - self.capacity))
            self.capacity = larger
            return
        order = used.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        for row, kept in zip(self._buffer.unbind(2), order, strict=True):  # an utterance's part of the buffer
            row[..., :count, :] = row.index_select(3, kept)
        ancestors = self.ancestors.gather(2, order.unsqueeze(1).expand(-1, self.ancestors.shape[1], -1))
        self.ancestors = F.pad(ancestors, (0, self.capacity - count))
        self.slots, self.taken = count, torch.full_like(self.taken, count)
