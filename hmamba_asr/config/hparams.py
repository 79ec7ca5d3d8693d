"""Load a YAML: HyperPyYAML with today's names for what old YAMLs call otherwise.

Everything that reads a YAML of ours goes through these two functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references

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


def resolve(text: str, overrides: Overrides = None) -> str:
    """Return a YAML with its overrides and references resolved and with today's names; builds nothing."""
    return resolve_references(rename_moved(text), _renamed(overrides)).read()


def _renamed(overrides: Overrides) -> dict[str, Any] | str | None:
    if overrides is None or isinstance(overrides, str):
        return rename_moved(overrides) if overrides else None
    return dict(overrides)
