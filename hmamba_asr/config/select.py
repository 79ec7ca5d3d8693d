"""Select the part of a run's YAML that one search needs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from hmamba_asr.config.hparams import resolve

RECOGNISER = ("features", "model", "tokenizer")


def select_search(text: str, search: str | None = None) -> tuple[str, str]:
    """Reduce a run's YAML to one search, so that nothing else is built or fetched.

    What stays: the features, the model, the tokenizer, the search under the key ``search``, and every key
    that holds plain values. Of a ``pretrainer`` stays what fetches these objects. A language model that the
    search does not hold goes, for example.

    Parameters
    ----------
    text : str
        The YAML, complete or as a run folder's hyperparams.yaml holds it. Names that moved are accepted.
    search : str, optional
        A key of ``test_searches``. The default is the last one.

    Returns
    -------
    name : str
        The name of the search.
    part : str
        The reduced YAML, with today's names.

    Raises
    ------
    ValueError
        If the YAML lacks the search or a part of the recogniser.
    """
    round_trip = YAML()
    document = round_trip.load(resolve(text))
    missing = [key for key in (*RECOGNISER, "test_searches") if key not in document]
    if missing:
        raise ValueError(f"the YAML has no key {', '.join(missing)}; give that of a trained recogniser.")
    searches = document["test_searches"]
    name = search or list(searches)[-1]
    if name not in searches:
        raise ValueError(f"the YAML has no search '{name}'; it has {', '.join(searches)}.")
    document["search"] = searches[name]
    needed = [*RECOGNISER, "search"]
    reached = {id(node) for key in needed for node in _nodes(document[key])}
    if "pretrainer" in document:
        needed.append("pretrainer")
        _drop_unreached(document["pretrainer"], reached)
    objects = [key for key in document if any(_is_tagged(node) for node in _nodes(document[key]))]
    for key in {*objects, "test_searches"} - {*needed}:
        del document[key]
    part = io.StringIO()
    round_trip.dump(document, part)
    return name, part.getvalue()


def _nodes(node: Any) -> Iterator[Any]:
    """Yield a node and all nodes inside it."""
    yield node
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _nodes(value)


def _is_tagged(node: Any) -> bool:
    """Return whether a node stands for an object, class or function."""
    tag = getattr(node, "tag", None)
    return str(getattr(tag, "value", tag) or "").startswith("!")


def _drop_unreached(pretrainer: Any, reached: set[int]) -> None:
    """Take out of a Pretrainer's arguments what belongs to objects that are not needed."""
    dropped = [name for name, node in pretrainer["loadables"].items() if id(node) not in reached]
    for argument in pretrainer.values():
        for name in dropped:
            if isinstance(argument, MutableMapping) and name in argument:
                del argument[name]
