"""The JSON Schema (draft 2020-12) of the scenario file, for editors."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from moesim.base.fields import Preset
from moesim.base.registry import SLOTS, PluginOf, kinds
from moesim.desk.docstrings import field_notes, summary
from moesim.desk.plain_data import plain_data
from moesim.desk.shape import alternatives, bare, field_types, item_annotation, marker_of
from moesim.facts.model import MoeModel
from moesim.facts.scenario import Policy, Scenario

Schema = dict[str, Any]
PLAIN_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def scenario_schema() -> Schema:
    """Return the schema of the whole file with every plug-in there is, those of outside packages too."""
    definitions: dict[str, Schema] = {}
    schema = _object(Scenario, definitions)
    schema["properties"]["model"] = _model(definitions)
    schema["properties"]["compare"] = {
        "type": "object",
        "description": "Named variants of the policy; each says only what differs from it. The first is the baseline.",
        "additionalProperties": {"anyOf": [{"type": "null"}, _partial_policy(definitions)]},
    }
    schema["properties"]["matrix"] = _matrix()
    schema["properties"]["plugins"]["description"] = "Python files with plug-ins of your own, relative to this file."
    schema["required"] = sorted(schema["required"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moesim scenario",
        **schema,
        "$defs": dict(sorted(definitions.items())),
    }


def schema_of(annotation: Any, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of what one field accepts; dataclasses go into ``definitions`` and are referred to."""
    choices = alternatives(annotation)
    if len(choices) > 1:
        return {"anyOf": [schema_of(choice, definitions) for choice in choices]}
    marker, kind = marker_of(annotation), bare(annotation)
    if isinstance(marker, PluginOf):
        return _slot(marker, definitions)
    if isinstance(marker, Preset):
        return {"anyOf": [{"enum": sorted(marker.table())}, _defined(marker.cls, definitions)]}
    if marker is not None:
        return marker.json_schema()
    return _unmarked(kind, definitions)


def _unmarked(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a type without a marker, as other people's plug-ins may have; an unknown type accepts anything."""
    if kind is None or kind in PLAIN_TYPES:
        return {"type": PLAIN_TYPES.get(kind, "null")}
    if typing.get_origin(kind) is typing.Literal:
        return {"enum": list(typing.get_args(kind))}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _defined(kind, definitions)
    item = item_annotation(kind)
    if item is not None:
        origin = typing.get_origin(kind)
        mapping = isinstance(origin, type) and issubclass(origin, Mapping)
        inner = schema_of(item, definitions)
        return {"type": "object", "additionalProperties": inner} if mapping else {"type": "array", "items": inner}
    return {}


def _defined(cls: type, definitions: dict[str, Schema]) -> Schema:
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}
        definitions[cls.__name__] = _object(cls, definitions)
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _object(cls: type, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a dataclass as a mapping."""
    notes = field_notes(cls)
    properties: dict[str, Schema] = {}
    required = []
    for item in dataclasses.fields(cls):
        if not item.init:
            continue
        annotation = field_types(cls)[item.name]
        schema = schema_of(annotation, definitions)
        note = notes.get(item.name, "")
        if note:
            written = schema.get("description")
            schema = schema | {"description": f"{note} ({written})" if written else note}
        if item.default is not dataclasses.MISSING:
            schema = schema | {"default": plain_data(item.default, annotation, str)}
        elif item.default_factory is dataclasses.MISSING:
            required.append(item.name)
        properties[item.name] = schema
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    said = summary(cls)
    return {"description": said, **schema} if said else schema


def _slot(marker: PluginOf, definitions: dict[str, Schema]) -> Schema:
    """Define every plug-in of a slot, and the choice between them; refer to the choice."""
    slot = SLOTS[marker.slot]
    name = f"any-{slot.name}"
    if name not in definitions:
        definitions[name] = {}
        words: list[str | None] = [*kinds(slot.name), *([None] if slot.null else [])]
        forms: list[Schema] = [{"enum": words}]
        for kind, cls in kinds(slot.name).items():
            schema = _object(cls, definitions)
            schema["properties"] = {slot.tag: {"const": kind}} | schema["properties"]
            schema["required"] = [*([] if kind == marker.default else [slot.tag]), *schema["required"]]
            definitions[f"{slot.name}-{kind}"] = schema
            forms.append({"$ref": f"#/$defs/{slot.name}-{kind}"})
        definitions[name] = {"anyOf": forms}
    return {"$ref": f"#/$defs/{name}"}


def _partial(schema: Schema, *also_required: str) -> Schema:
    return {key: value for key, value in schema.items() if key != "required"} | ({"required": list(also_required)} if also_required else {})


def _model(definitions: dict[str, Schema]) -> Schema:
    """Return the three forms of the model section; inline fields may go with either of the first two."""
    from moesim.desk.presets.models import model_presets

    whole = _object(MoeModel, definitions)
    names = list(model_presets())
    preset = {"enum": names, "description": "A model that moesim knows; 'moesim list models' shows them."}
    config = {"type": "string", "description": "A Hugging Face config.json, relative to this file."}
    inline = _partial(whole)["properties"]
    attention = inline["attention"]
    inline = inline | {"attention": {"anyOf": [attention, _partial(definitions["Attention"])]}}
    over = {"type": "object", "additionalProperties": False}
    return {
        "description": whole.get("description", ""),
        "anyOf": [
            {"enum": names},
            over | {"properties": {"preset": preset} | inline, "required": ["preset"]},
            over | {"properties": {"config": config} | inline, "required": ["config"]},
            whole,
        ],
    }


def _matrix() -> Schema:
    """Return the schema of the matrix; what a dotted key accepts is known only when a cell is read."""
    cells = {"type": "array", "items": {"type": "object", "minProperties": 1}}
    return {
        "type": ["object", "null"],
        "description": "Values of dotted keys; 'moesim sweep' runs every combination of them.",
        "properties": {
            "include": {"description": "Cells on top of the combinations: the values of some keys, each by its dotted key.", **cells},
            "exclude": {"description": "Combinations that are left out: those that have all of these values.", **cells},
        },
        "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1}, {"type": "string", "pattern": r"^\s*[-+.0-9].*\.\."}]},
    }


def _partial_policy(definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a variant: a plug-in may leave out its kind and what it does not change."""
    sections: dict[str, Schema] = {}
    for field_name, annotation in field_types(Policy).items():
        marker = marker_of(annotation)
        if not isinstance(marker, PluginOf):
            sections[field_name] = schema_of(annotation, definitions)
            continue
        whole, slot = schema_of(annotation, definitions), SLOTS[marker.slot]
        parts = [_partial(definitions[f"{slot.name}-{kind}"]) for kind in kinds(slot.name)]
        sections[field_name] = {"anyOf": [whole, *parts]}
    return {"type": "object", "properties": sections, "additionalProperties": False}
