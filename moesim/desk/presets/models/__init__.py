"""Models by name: each a ``config.json`` reduced to the facts, read by the same reader as anybody's."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from moesim.base.errors import PluginError, did_you_mean
from moesim.desk.model_config import model_of
from moesim.facts.model import MoeModel


@cache
def model_presets() -> tuple[str, ...]:
    """Return the names of all shipped models, sorted."""
    found = (entry.name for entry in files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))


@cache
def model_preset(name: str) -> MoeModel:
    """Return a shipped model.

    Parameters
    ----------
    name : str
        One of :func:`model_presets`.

    Raises
    ------
    PluginError
        If there is no such model; the message names the nearest.

    Examples
    --------
    >>> model_preset("mixtral-8x7b").experts
    8
    """
    if name not in model_presets():
        raise PluginError(f"unknown model {name!r}{did_you_mean(name, model_presets())}")
    text = files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    return model_of(json.loads(text), name, file=f"{name}.json")
