"""What differs between two resolved YAMLs, and whether that is more than the seed."""

from __future__ import annotations

import yaml

from hmamba_asr.config.moved import current_tag

# Keys that are no part of what is measured, or that have columns of their own.
NO_CHANGE = (
    "name",
    "seed",
    "data_folder",
    "output_folder",
    "train_splits",
    "valid_splits",
    "test_splits",
    "pretrained_source",
    "num_workers",
    "log_every_steps",
    "ckpt_interval_minutes",
)
# Keys that only other keys of the YAML refer to: their values are compared there. Older YAMLs lack them, and
# describe the evaluation's batches in words (eval_batching).
REFERRED_TO = (
    "name",
    "lr",
    "nhead",
    "num_layers",
    "outer_layers",
    "inner_layers",
    "middle_layers",
    "inner_d_model",
    "kernel_size",
    "d_state",
    "scan_backend",
    "eval_batching",
)


def yaml_difference(a: str, b: str) -> dict[str, list[str | None]]:
    """Return the keys of two resolved YAMLs that differ.

    Returns
    -------
    dict
        {key: [value in a, value in b]}, with keys such as ``encoder.num_layers`` and None where there is no
        such key. An object with a top-level key of its own stands under that key, wherever else it is used.
        Moved classes have their names of today. Paths below a run's own output_folder or data_folder are
        equal if the rest of them is.
    """
    left, right = _flatten(a), _flatten(b)
    keys = dict.fromkeys([*left, *right])
    return {key: [left.get(key), right.get(key)] for key in keys if left.get(key) != right.get(key)}


def _flatten(text: str) -> dict[str, str]:
    root = yaml.compose(text)
    found: dict[str, str] = {}
    if not isinstance(root, yaml.MappingNode):
        return found
    # PyYAML gives an alias the very node that it stands for.
    homes = {id(node): key.value for key, node in root.value if isinstance(node, yaml.CollectionNode)}
    seen: set[int] = set()

    def visit(node: yaml.Node, key: str) -> None:
        if isinstance(node, yaml.CollectionNode):
            if id(node) in seen or homes.get(id(node), key) != key:
                return
            seen.add(id(node))
        tag = current_tag(node.tag) if node.tag.startswith("!") else ""
        if isinstance(node, yaml.ScalarNode):
            found[key] = f"{tag} {node.value}".strip() or "null"
            return
        if tag:
            found[key] = tag
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                visit(value, f"{key}.{name.value}")
        elif all(isinstance(item, yaml.ScalarNode) for item in node.value):
            found[key] = f"[{', '.join(item.value for item in node.value)}]"
        else:
            for index, item in enumerate(node.value):
                visit(item, f"{key}[{index}]")

    for name, value in root.value:
        if name.value not in REFERRED_TO:
            visit(value, name.value)
    for name in ("output_folder", "data_folder"):
        folder = found.get(name)
        if folder:
            found = {
                key: f"<{name}>{value[len(folder) :]}" if value.startswith(folder) else value
                for key, value in found.items()
            }
    return found


def differ_in_seed_only(a: str, b: str) -> bool:
    """Tell whether two resolved YAMLs are alike, apart from ``NO_CHANGE`` and keys named seed."""
    changed = yaml_difference(a, b)
    return all(
        key.split(".")[0].split("[")[0] in NO_CHANGE or key.split(".")[-1] == "seed" for key in changed
    )
