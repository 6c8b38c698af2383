"""The ``model:`` section: a preset, a ``config.json``, or the fields themselves; inline fields win over the other two."""

from __future__ import annotations

import dataclasses
from typing import Any

from moesim.base.errors import MoesimError, Problem, ScenarioError, did_you_mean
from moesim.desk.shape import field_types
from moesim.desk.structure import problems_of, structure
from moesim.desk.yaml_tree import Node
from moesim.facts.model import MoeModel

OWN_KEYS = ("preset", "config")


def read_model(node: Node) -> tuple[MoeModel | None, list[Problem]]:
    """Build the model of a scenario.

    Parameters
    ----------
    node : Node
        The value of ``model``; the path under ``config`` is absolute already, or null where the file is known to be missing.

    Returns
    -------
    model : MoeModel or None
        None where there are problems.
    problems : list of Problem
    """
    if isinstance(node.value, str):
        node = Node({"preset": Node(node.value, node.place, node.place)}, node.place, node.key)
    if not isinstance(node.value, dict):
        return None, [
            node.place.problem("model", "expected a mapping: {preset: NAME}, {config: path/to/config.json} or the model's fields")
        ]
    preset, config = node.child("preset"), node.child("config")
    if preset is not None and config is not None:
        return None, [config.key.problem("model.config", "a model has either a preset or a config, not both")]
    known: MoeModel | None = None
    problems: list[Problem] = []
    if preset is not None:
        known, problems = _preset(preset)
    elif config is not None:
        known, problems = _config(config)
    inline = node.without(*OWN_KEYS)
    if known is not None and not inline.value:
        return known, problems
    failed = known is None and (preset is not None or config is not None)
    base = {} if known is None else {item.name: getattr(known, item.name) for item in dataclasses.fields(known)}
    model, error = structure(MoeModel, base | _laid_over(known, inline))
    if error is not None:
        found = [problem for _, problem in problems_of(error, inline, MoeModel, prefix=("model",), also_known=OWN_KEYS)]
        # Without its preset everything would seem to be missing; what is wrong with the keys that are there still counts.
        problems += [problem for problem in found if not (failed and problem.message.startswith("missing key"))]
    return (None if problems or failed else model), problems


def _laid_over(known: MoeModel | None, inline: Node) -> dict[str, Any]:
    """Return the inline fields; a section inside (attention) keeps the fields of the preset that it does not name."""
    data: dict[str, Any] = inline.data()
    for name in field_types(MoeModel):
        before = getattr(known, name, None)
        if isinstance(data.get(name), dict) and dataclasses.is_dataclass(before):
            data[name] = {item.name: getattr(before, item.name) for item in dataclasses.fields(before)} | data[name]
    return data


def _preset(node: Node) -> tuple[MoeModel | None, list[Problem]]:
    from moesim.desk.presets.models import model_preset, model_presets

    names = model_presets()
    if node.value not in names:
        return None, [node.place.problem("model.preset", f"unknown model {node.value!r}{did_you_mean(str(node.value), names)}")]
    return model_preset(node.value), []


def _config(node: Node) -> tuple[MoeModel | None, list[Problem]]:
    if node.value is None:
        return None, []
    from moesim.desk.model_config import read_config

    try:
        return read_config(node.value), []
    except ScenarioError as error:
        return None, list(error.problems)
    except MoesimError as error:
        return None, [node.place.problem("model.config", str(error))]
    except (OSError, ValueError) as error:
        return None, [node.place.problem("model.config", f"cannot read {node.value}: {error}")]
