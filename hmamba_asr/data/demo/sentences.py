"""What is said in the demo corpus, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SEEN_VOICES = (  # each half has all accents and both sexes
    *("en-us+m1", "en-gb-x-rp+f1", "en-gb-scotland+m2", "en-029+f2"),
    *("en-us+f3", "en-gb-x-rp+m3", "en-gb-scotland+f4", "en-029+m4"),
    *("en-us+m2", "en-gb-x-rp+f2", "en-gb-scotland+m3", "en-029+f3"),
    *("en-us+f4", "en-gb-x-rp+m4", "en-gb-scotland+f1", "en-029+m1"),
)
UNSEEN_VOICES = (
    *("en-us+m7", "en-gb-x-rp+f5", "en-gb-scotland+m6"),
    *("en-us-nyc+m5", "en-gb-x-gbclan+f5", "en-gb-x-gbcwmd+m8"),
)
SPEAKERS = {
    "train": (1001, SEEN_VOICES),
    "dev-clean": (2001, SEEN_VOICES[:8]),
    "test-clean": (3001, SEEN_VOICES[8:]),
    "test-other": (4001, UNSEEN_VOICES),
}
"""The first speaker number of each split, and the voices of its speakers."""

GRAMMAR = {
    "sentence": (
        *("thing moved where", "name moved where", "name moved where when", "name got thing"),
        *("name got goods when", "name AND name got goods", "name WILL act thing when"),
        *("act thing", "act goods where", "PLEASE act thing NOW", "PLEASE act goods AGAIN"),
    ),
    "thing": ("det object", "det adjective object"),
    "goods": ("number items", "number adjective items"),
    "where": ("preposition THE place", "preposition THE adjective place"),
    "when": ("TODAY", "YESTERDAY", "ON MONDAY", "ON FRIDAY"),
    "name": ("ANNA", "PETER", "MARIA", "DAVID", "LUCY", "OLIVER"),
    "det": ("THE", "A", "MY", "HIS", "THIS"),
    "adjective": (
        *("RED", "BLUE", "GREEN", "YELLOW", "BLACK", "WHITE"),
        *("OLD", "NEW", "SMALL", "HEAVY", "QUIET", "BROKEN"),
    ),
    "object": (
        *("BOAT", "LAMP", "BOOK", "TABLE", "HORSE", "CAT"),
        *("BIRD", "BOX", "LETTER", "CLOCK", "DOOR", "WINDOW"),
    ),
    "items": ("APPLES", "COINS", "BOTTLES", "FLOWERS"),
    "place": ("TOWN", "RIVER", "GARDEN", "KITCHEN", "BRIDGE", "STATION", "HARBOR", "FOREST"),
    "moved": ("CAME", "WENT", "RAN", "WALKED"),
    "preposition": ("TO", "FROM", "NEAR", "BEHIND", "UNDER"),
    "got": ("BOUGHT", "FOUND", "SOLD", "LOST", "PAINTED", "CARRIED"),
    "act": ("TOUCH", "HIDE", "BRING", "MOVE", "WASH", "LEAVE"),
    "number": ("THREE", "FIVE", "SIX", "SEVEN", "NINE", "TWENTY"),
}
"""Rules (lower case) and words (upper case). No two words sound alike (no TO and TWO, no RED and READ)."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A voice of espeak-ng with its own prosody.

    Attributes
    ----------
    id
        The speaker's number.
    split
        The split that the speaker is in.
    voice
        An accent and a voice variant of espeak-ng.
    rate
        Words per minute.
    pitch, pitch_range
        From 0 to 99.
    """

    id: int
    split: str
    voice: str
    rate: int
    pitch: int
    pitch_range: int


def plan_corpus(seed: int, counts: Mapping[str, int]) -> list[tuple[Speaker, list[str]]]:
    """Say who speaks which sentences. No sentence comes twice, in any split.

    Parameters
    ----------
    seed
        Of sentences and speakers.
    counts
        The number of utterances of each split.

    Returns
    -------
    list
        The speakers with their sentences.
    """
    taken: set[str] = set()
    plan = []
    # The test sets come first: a longer or shorter train split leaves them as they are.
    for split in ("test-clean", "test-other", "dev-clean", "train"):
        first_id, voices = SPEAKERS[split]
        rng = np.random.default_rng([seed, first_id])
        sentences: list[str] = []
        while len(sentences) < counts[split]:
            sentence = make_sentence(rng)
            if sentence not in taken:
                taken.add(sentence)
                sentences.append(sentence)
        for i, voice in enumerate(voices):
            rng = np.random.default_rng([seed, first_id + i, 0])
            speaker = Speaker(
                id=first_id + i,
                split=split,
                voice=voice,
                rate=int(rng.integers(145, 190)),
                pitch=int(rng.integers(35, 66)),
                pitch_range=int(rng.integers(35, 66)),
            )
            if lines := sentences[i :: len(voices)]:
                plan.append((speaker, lines))
    return plan


def make_sentence(rng: np.random.Generator) -> str:
    """Make a sentence of 3 to 8 words by the grammar."""

    def expand(symbol: str) -> list[str]:
        if symbol not in GRAMMAR:
            return [symbol]
        alternatives = GRAMMAR[symbol]
        chosen = alternatives[rng.integers(len(alternatives))]
        return [word for part in chosen.split() for word in expand(part)]

    words = expand("sentence")
    pairs = zip(words, [*words[1:], ""], strict=True)
    return " ".join("AN" if word == "A" and following[0] in "AEIOU" else word for word, following in pairs)
