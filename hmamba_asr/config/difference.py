"""What differs between two resolved YAMLs, and whether that is more than the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

# Keys that are no part of what is measured, or that have columns of their own.
NO_CHANGE = (
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


def yaml_difference(a: str, b: str) -> dict[str, list[str | None]]:
    """{key: [value in a, value in b]} of two resolved YAMLs, keys as `model.encoder.num_layers`, None where
    there is no such key.

    An object that is referred to again stands where it is defined. Paths below the run's own output_folder or
    data_folder are equal if the rest of them is.
    """
    values = [_flatten(text) for text in (a, b)]
    keys = dict.fromkeys(key for flat in values for key in flat)
    return {
        key: [flat.get(key) for flat in values] for key in keys if values[0].get(key) != values[1].get(key)
    }


def _flatten(text: str) -> dict[str, str]:
    root = yaml.compose(text)
    found: dict[str, str] = {}
    seen: set[int] = set()

    def visit(node: yaml.Node, key: str) -> None:
        # PyYAML gives an alias the very node that it stands for.
        if isinstance(node, yaml.CollectionNode) and id(node) in seen:
            return
        seen.add(id(node))
        tag = node.tag if node.tag.startswith("!") else ""
        if isinstance(node, yaml.ScalarNode):
            found[key] = f"{tag} {node.value}".strip() or "null"
            return
        if tag:
            found[key] = tag
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                visit(value, f"{key}.{name.value}" if key else name.value)
        elif all(isinstance(item, yaml.ScalarNode) for item in node.value):
            found[key] = f"[{', '.join(item.value for item in node.value)}]"
        else:
            for index, item in enumerate(node.value):
                visit(item, f"{key}[{index}]")

    if root is not None:
        visit(root, "")
    for name in ("output_folder", "data_folder"):
        folder = found.get(name)
        if folder:
            found = {
                key: f"<{name}>{value[len(folder) :]}" if value.startswith(folder) else value
                for key, value in found.items()
            }
    return found


def differ_in_seed_only(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two results files are of the same experiment with different seeds: alike in name, overrides,
    training splits and resolved YAML, apart from `NO_CHANGE` and keys named seed. The code's commit may
    differ."""
    if a["seed"] == b["seed"] or a["name"] != b["name"]:
        return False
    if a.get("overrides", {}) != b.get("overrides", {}) or _train_splits(a) != _train_splits(b):
        return False
    changed = yaml_difference(a["hparams"], b["hparams"])
    return all(
        key.split(".")[0].split("[")[0] in NO_CHANGE or key.split(".")[-1] == "seed" for key in changed
    )


def _train_splits(results: Mapping[str, Any]) -> list[str] | None:
    return results["training"] and results["training"]["train_splits"]
