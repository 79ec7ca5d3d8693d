"""What results files of earlier versions do not say themselves, read from the YAML that they hold.

Files of today have the key "chunking", as the model describes itself; see `results.Chunking`.
"""

from __future__ import annotations

from typing import Any

import yaml

# Class name -> kind, as ``ASRModel.chunking`` calls it; a class that was removed keeps its line.
_KINDS = {
    "CTCChunker": "ctc",
    "DynamicChunker": "router",
    "HNetChunker": "router",
    "FixedStrideChunker": "fixed_stride",
}


def chunking_of(text: str) -> list[dict[str, Any]]:
    """Return what each chunking stage of a resolved YAML is, in the order of the YAML; [] for a flat model.

    Returns
    -------
    list of dict
        In the form of ``ASRModel.chunking``: "kind" is "ctc", "router" or "fixed_stride", "ratio" the frames
        in a chunk that are asked for.
    """
    found: list[dict[str, Any]] = []
    seen: set[int] = set()

    def visit(node: yaml.Node | None) -> None:
        # PyYAML gives an alias the very node that it stands for.
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            return
        seen.add(id(node))
        kind = _KINDS.get(node.tag.rpartition(".")[2]) if node.tag.startswith("!new:") else None
        if kind and isinstance(node, yaml.MappingNode):
            arguments = {key.value: value.value for key, value in node.value}
            ratio = arguments["stride" if kind == "fixed_stride" else "target_ratio"]
            found.append({"kind": kind, "ratio": float(ratio)})
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                visit(part)

    visit(yaml.compose(text))
    return found
