"""Load a YAML: HyperPyYAML with today's names for what old YAMLs call otherwise.

Everything that reads a YAML of ours goes through these functions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML

from hmamba_asr.config.moved import rename_moved

Overrides = Mapping[str, Any] | str | None


def load_hparams(text: str, overrides: Overrides = None) -> dict[str, Any]:
    """Build the objects of a YAML.

    Parameters
    ----------
    text : str
        The YAML, complete or as a run folder's hyperparams.yaml holds it.
    overrides : mapping or str, optional
        Values that take the place of the YAML's, as a mapping or as YAML text. A mapping of arguments changes
        these arguments only.

    Returns
    -------
    dict
        The value or object of each top-level key.

    Raises
    ------
    ValueError
        If the YAML names a class that was removed, or a value is missing.
    """
    return load_hyperpyyaml(rename_moved(text), _renamed(overrides))


def load_parts(
    text: str, keys: Sequence[str], overrides: Overrides = None, *, trusted: Sequence[str] | None = None
) -> dict[str, Any]:
    """Build only the objects of some top-level ``keys``, and what these refer to.

    With ``trusted``, every tag must be ``!new:`` with a dotted path that begins with one of these texts. A
    YAML can name any function, so this is what makes a stranger's YAML safe to build.

    Raises
    ------
    ValueError
        If the YAML has no such key, or a tag is not trusted; otherwise as :func:`load_hparams`.
    """
    round_trip = YAML()
    document = round_trip.load(resolve(text, overrides))
    missing = [key for key in keys if key not in document]
    if missing:
        raise ValueError(f"the YAML has no key {', '.join(missing)}; its keys are: {', '.join(document)}.")
    for key in [key for key in document if key not in keys]:
        del document[key]
    part = io.StringIO()
    round_trip.dump(document, part)
    if trusted is not None:
        _require_trusted(part.getvalue(), tuple(trusted))
    return load_hyperpyyaml(part.getvalue())


def _require_trusted(text: str, trusted: tuple[str, ...]) -> None:
    for token in yaml.scan(text):
        if isinstance(token, yaml.TagToken):
            tag = "".join(part or "" for part in token.value)
            path = tag.removeprefix("!new:")
            if path == tag or not path.startswith(trusted):
                raise ValueError(f"the YAML names {tag}, which is not built from a results file.")


def build_error_reason(error: Exception) -> str:
    """Return why HyperPyYAML could not build an object, in one line: its errors hold several texts."""
    return " ".join("; ".join(map(str, error.args)).split())


def resolve(text: str, overrides: Overrides = None) -> str:
    """Return a YAML with its overrides and references resolved and with today's names; builds nothing."""
    return resolve_references(rename_moved(text), _renamed(overrides)).read()


def top_level_nodes(text: str) -> dict[str, yaml.Node]:
    """Return the node of each top-level key of a YAML; builds nothing, and tags stay tags."""
    root = yaml.compose(text)
    return {key.value: node for key, node in root.value} if isinstance(root, yaml.MappingNode) else {}


def _renamed(overrides: Overrides) -> dict[str, Any] | str | None:
    if overrides is None or isinstance(overrides, str):
        return rename_moved(overrides) if overrides else None
    return dict(overrides)
