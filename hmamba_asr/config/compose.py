"""Put a YAML together from a base and variants.

A base is a complete YAML. A variant holds only what differs, in 3 to 30 lines:

- A key with arguments and no tag changes these arguments of the base's object: ``encoder: {output: frames}``.
- Any other value takes the place of the base's; a key that the base does not have is added.
- ``!base:encoder {num_layers: 8}`` is a copy of the base's own ``encoder`` with these arguments changed,
  whatever class the base has there. The base is what stood before the variant.
- ``needs: {chunker: hmamba.yaml}`` names another variant in the same folder. It is applied first where the
  base has no key ``chunker``.
- ``drops: [d_state]`` takes away keys that nothing needs any more.

The result is one complete YAML without any of these directives.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from hmamba_asr.config.moved import rename_moved

BASE_TAG = "!base:"


def run_name(base: str | Path, variants: Sequence[str | Path] = ()) -> str:
    """Return the name of a run: the stem of the base and of each variant, as in ``conmamba_mini+hmamba``."""
    return "+".join(Path(path).stem for path in (base, *variants))


def compose(base: str | Path, variants: Sequence[str | Path] = ()) -> str:
    """Return the text of ``base`` with ``variants`` applied in their order.

    The key ``name`` becomes :func:`run_name`. A YAML that has a name already, as a run folder's own does,
    keeps it, with the variants appended; without any, its text stays as it is.

    Raises
    ------
    FileNotFoundError
        If a YAML does not exist.
    ValueError
        If one is not YAML, or a variant changes arguments of something that the base does not have.
    """
    document = _load(Path(base))
    named = document.get("name")
    if named is not None and not variants:
        return rename_moved(Path(base).read_text(encoding="utf-8"))  # writing it anew may move its comments
    if named is None:
        document.insert(0, "name", run_name(base, variants))
    else:
        document["name"] = run_name(f"{named}.yaml", variants)
    for variant in variants:
        _apply(document, Path(variant), run_name(base))
    text = io.StringIO()
    _round_trip().dump(document, text)
    return text.getvalue()


def _round_trip() -> YAML:
    round_trip = YAML()
    round_trip.preserve_quotes = True
    round_trip.width = 4096  # never break a line
    round_trip.indent(mapping=4, sequence=6, offset=4)
    return round_trip


def _load(path: Path) -> CommentedMap:
    if not path.is_file():
        beside = sorted(found.name for found in path.parent.glob("*.yaml"))
        there = (
            f"{path.parent} holds {', '.join(beside)}" if beside else "the repository's own are in hparams/"
        )
        raise FileNotFoundError(f"there is no YAML {path}; {there}.")
    try:
        document = _round_trip().load(rename_moved(path.read_text(encoding="utf-8")))
    except YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(document, CommentedMap):
        raise ValueError(f"{path} holds no keys; a YAML is a list of 'key: value'.")
    return document


def _apply(document: CommentedMap, path: Path, base_name: str) -> None:
    """Change ``document`` as the variant at ``path`` says."""
    variant = _load(path)
    for key, needed in variant.pop("needs", {}).items():
        if key not in document:
            _apply(document, path.parent / needed, base_name)
    base = copy.copy(document)  # what !base: refers to: its nodes, before this variant takes any away
    dropped = variant.pop("drops", [])
    for node in _tagged_nodes(variant):
        _copy_from_base(node, base, path, base_name)
    _merge(document, variant, path, base_name)
    for key in dropped:
        _drop(document, key, path, base_name)


def _drop(document: CommentedMap, key: str, path: Path, base_name: str) -> None:
    """Take ``key`` out of ``document``, where nothing refers to it."""
    if key not in document:
        raise ValueError(f"{path} drops {key}, and {base_name} has no such key; use another base.")
    del document[key]
    users = [name for name, value in document.items() if f"<{key}>" in _values(value)]
    if users:
        raise ValueError(
            f"{path} drops {key}, which {base_name} needs for {', '.join(users)}; use another base."
        )


def _values(node: object) -> str:
    """Return every plain value below ``node``, as text."""
    if isinstance(node, CommentedMap):
        return " ".join(map(_values, node.values()))
    if isinstance(node, list):
        return " ".join(map(_values, node))
    return str(getattr(node, "value", node))


def _tagged_nodes(node: object) -> Iterator[CommentedMap]:
    """Yield every node below ``node`` that has the tag ``!base:``."""
    if isinstance(node, CommentedMap):
        if _tag(node).startswith(BASE_TAG):
            yield node
        for value in node.values():
            yield from _tagged_nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _tagged_nodes(value)


def _copy_from_base(node: CommentedMap, base: CommentedMap, path: Path, base_name: str) -> None:
    """Turn ``node``, arguments under the tag ``!base:KEY``, into the base's KEY with these arguments."""
    key = _tag(node).removeprefix(BASE_TAG)
    original = base.get(key)
    if not isinstance(original, CommentedMap):
        raise ValueError(f"{path} copies {key}, and {base_name} has no such object; use another base.")
    missing = [name for name in node if name not in original]
    if missing:
        raise ValueError(
            f"{path} changes {', '.join(missing)} of {key}, and the {key} of {base_name} has no such "
            "argument; use another base."
        )
    changed = dict(node)
    comments = {name: node.ca.items[name] for name in changed if name in node.ca.items}
    node.clear()
    node.ca.items.clear()
    node.yaml_set_ctag(copy.copy(original.tag))
    node.fa.set_block_style()
    for name, value in original.items():
        node[name] = changed.get(name, copy.deepcopy(value))
        comment = comments.get(name) or original.ca.items.get(name)
        if comment:
            node.ca.items[name] = copy.deepcopy(comment)


def _merge(target: CommentedMap, changes: CommentedMap, path: Path, base_name: str) -> None:
    """Put the values of ``changes`` into ``target``; new keys come before the next key that both have."""
    names = list(changes)
    for index, name in enumerate(names):
        value = changes[name]
        old = target.get(name)
        if isinstance(value, CommentedMap) and not _tag(value):
            if not isinstance(old, CommentedMap):
                raise ValueError(
                    f"{path} changes arguments of {name}, and {base_name} has no object there; use another "
                    "base, or put a variant that has it in front."
                )
            _merge(old, value, path, base_name)
            continue
        if name in target:
            target[name] = value
        else:
            following = next((other for other in names[index + 1 :] if other in target), None)
            position = list(target).index(following) if following else len(target)
            target.insert(position, name, value)
        if name in changes.ca.items:
            target.ca.items[name] = changes.ca.items[name]


def _tag(node: CommentedMap) -> str:
    return (node.tag.value if node.tag else None) or ""
