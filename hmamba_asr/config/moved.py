"""Moved and removed names: what the YAMLs of old run folders call things, and what they are called today.

A YAML names classes and functions by their dotted path (``!new:hmamba_asr.models.asr.ASRModel``). Whoever
moves or renames one of them adds a line here, so that every run folder keeps working.
"""

from __future__ import annotations

import yaml

# Old dotted path -> dotted path today.
MOVED: dict[str, str] = {
    "hmamba_asr.data.dataset.dynamic_train_loader": "hmamba_asr.data.loaders.dynamic_train_loader",
    "hmamba_asr.data.dataset.eval_loader": "hmamba_asr.data.loaders.eval_loader",
    "hmamba_asr.data.dataset.ordered_loader": "hmamba_asr.data.loaders.ordered_loader",
    "hmamba_asr.data.dataset.train_loader": "hmamba_asr.data.loaders.train_loader",
    "hmamba_asr.decoding.beam.BeamSearch": "hmamba_asr.decoding.beam_search.BeamSearch",
    "hmamba_asr.decoding.beam.GreedySearch": "hmamba_asr.decoding.greedy.GreedySearch",
    "hmamba_asr.decoding.search.BeamSearch": "hmamba_asr.decoding.beam_search.BeamSearch",
    "hmamba_asr.models.encoder.ConMambaEncoder": "hmamba_asr.models.conmamba.ConMambaEncoder",
    "hmamba_asr.models.conformer.ConformerControl": "hmamba_asr.models.conformer.ConformerEncoder",
    "hmamba_asr.models.encoder.ConformerControl": "hmamba_asr.models.conformer.ConformerEncoder",
    "hmamba_asr.models.encoder.HierarchicalEncoder": "hmamba_asr.models.hmamba.HierarchicalEncoder",
    "hmamba_asr.modules.chunking.CTCChunker": "hmamba_asr.modules.chunkers.CTCChunker",
    "hmamba_asr.modules.chunking.FixedStrideChunker": "hmamba_asr.modules.chunkers.FixedStrideChunker",
    "hmamba_asr.modules.chunkers.HNetChunker": "hmamba_asr.hnet.router.HNetChunker",
    "hmamba_asr.modules.chunking.HNetChunker": "hmamba_asr.hnet.router.HNetChunker",
}

_NO_ROUTER = (
    "was removed in version 0.2.0; use hmamba_asr.modules.chunkers.CTCChunker (hparams/variants/hmamba.yaml) "
    "or evaluate this run with version 0.1.0"
)
# Old dotted path -> what became of it: the end of a sentence that begins with the path.
REMOVED: dict[str, str] = {
    "hmamba_asr.modules.chunking.DynamicChunker": _NO_ROUTER,
    "hmamba_asr.modules.chunkers.DynamicChunker": _NO_ROUTER,
}


def current_tag(tag: str) -> str:
    """Return a YAML tag, ``!new:dotted.path``, with the path's name of today."""
    kind, colon, path = tag.partition(":")
    return f"{kind}{colon}{MOVED.get(path, path)}"


def removed_names(text: str) -> list[str]:
    """Return the removed classes that the YAML ``text`` names."""
    if not any(path in text for path in REMOVED):  # scanning takes long
        return []
    tags = [token.value for token in yaml.scan(text) if isinstance(token, yaml.TagToken)]
    paths = ("".join(part or "" for part in tag).partition(":")[2] for tag in tags)
    return [path for path in paths if path in REMOVED]


def rename_moved(text: str) -> str:
    """Return the YAML ``text`` with today's names in its tags; all else stays, comments included.

    Raises
    ------
    ValueError
        If the YAML names something that was removed.
    """
    pieces: list[str] = []
    end = 0
    for token in yaml.scan(text):
        if not isinstance(token, yaml.TagToken):
            continue
        tag = "".join(part or "" for part in token.value)
        path = tag.partition(":")[2]
        if path in REMOVED:
            raise ValueError(f"{path}, which the YAML names, {REMOVED[path]}.")
        if path in MOVED:
            pieces += [text[end : token.start_mark.index], current_tag(tag)]
            end = token.end_mark.index
    return "".join([*pieces, text[end:]])
