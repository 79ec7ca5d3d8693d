"""A reference and a hypothesis aligned word by word."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AlignedUtterance:
    """One utterance's words: pairs of (reference, hypothesis), with None where one of them has no word."""

    id: str
    pairs: tuple[tuple[str | None, str | None], ...]

    @property
    def words(self) -> int:
        """Number of words in the reference."""
        return sum(reference is not None for reference, _ in self.pairs)

    @property
    def errors(self) -> int:
        """Number of insertions, deletions and substitutions."""
        return sum(reference != hypothesis for reference, hypothesis in self.pairs)

    @property
    def reference(self) -> list[str]:
        """Words of the reference."""
        return [reference for reference, _ in self.pairs if reference is not None]

    @property
    def speaker(self) -> str:
        """The first part of LibriSpeech's `speaker-chapter-utterance`; the whole ID if it has no dash."""
        return self.id.split("-")[0]
