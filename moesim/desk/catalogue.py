"""What there is to choose from: plug-ins with their keys, models, GPUs; for ``moesim list``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from moesim.base.errors import UsageError, did_you_mean
from moesim.base.fields import Choice, Marker, Preset, Quantity
from moesim.base.registry import SLOTS, Slot, kinds
from moesim.base.units import DIMENSIONS, format_quantity
from moesim.desk.docstrings import field_notes, summary
from moesim.desk.plain_data import plain_data
from moesim.desk.shape import alternatives, bare, field_types, item_annotation, marker_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a plug-in; ``default`` is what YAML would say, None where ``required``."""

    name: str
    takes: str
    required: bool
    default: Any
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that can be named in a scenario."""

    name: str
    summary: str
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Things of one sort; ``written`` shows how a scenario names one."""

    name: str
    written: str
    entries: tuple[Entry, ...]


SECTIONS = {"topology": "cluster", "source": "routing"}
"""Slots whose key in the file is not their own name."""
POLICY = ("gate", "capacity", "placement", "dispatch")


def group_names() -> list[str]:
    """Return every word that ``moesim list`` takes."""
    return [*(slot.plural for slot in SLOTS.values()), "models", "gpus"]


def catalogue(name: str) -> Group:
    """Return what one word of :func:`group_names` stands for; a slot's singular does as well.

    Raises
    ------
    UsageError
        If there is no such word.
    """
    if name in {"models", "model"}:
        return _models()
    if name in {"gpus", "gpu"}:
        return _gpus()
    for slot in SLOTS.values():
        if name in {slot.plural, slot.name}:
            return _plugins(slot)
    raise UsageError(f"there is nothing called {name!r} to list{did_you_mean(name, group_names())}")


def _plugins(slot: Slot) -> Group:
    entries = tuple(Entry(name=kind, summary=summary(cls), keys=_keys(cls)) for kind, cls in kinds(slot.name).items())
    section = SECTIONS.get(slot.name, f"policy.{slot.name}" if slot.name in POLICY else slot.name)
    written = "" if slot.name == "metric" else f"{section}: {{{slot.tag}: NAME, ...}}"
    return Group(name=slot.plural, written=written, entries=entries)


def _keys(cls: type) -> tuple[Key, ...]:
    notes = field_notes(cls)
    keys = []
    for item in dataclasses.fields(cls):
        if not item.init:
            continue
        annotation = field_types(cls)[item.name]
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        default = None if required else plain_data(_default(item), annotation, str)
        keys.append(Key(name=item.name, takes=takes(annotation), required=required, default=default, note=notes.get(item.name, "")))
    return tuple(keys)


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def takes(annotation: Any) -> str:
    """Return in a few words what a field accepts.

    Examples
    --------
    >>> from moesim.base.fields import Seconds
    >>> takes(Seconds | None)
    "a time with a unit ('3 us') or null"
    """
    return " or ".join(_one(choice) for choice in alternatives(annotation))


def _one(annotation: Any) -> str:
    marker, kind = marker_of(annotation), bare(annotation)
    if marker is not None:
        return _marked(marker)
    if kind is None or kind is type(None):
        return "null"
    item = item_annotation(kind)
    if item is not None:
        return f"a {'mapping to' if 'apping' in str(kind) or 'dict' in str(kind) else 'list of'} {takes(item)}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping of {', '.join(entry.name for entry in dataclasses.fields(kind))}"
    return getattr(kind, "__name__", str(kind))


def _marked(marker: Marker) -> str:
    if isinstance(marker, Quantity):
        dimension = DIMENSIONS[marker.dimension]
        return f"{dimension.name} with a unit ('{dimension.example}')"
    if isinstance(marker, Choice):
        return " | ".join(marker.words)
    if isinstance(marker, Preset):
        return "a preset's name or a mapping"
    schema = marker.json_schema()
    lower = schema.get("minimum", schema.get("exclusiveMinimum"))
    bounds = [] if lower is None else [f"{'more than' if 'exclusiveMinimum' in schema else 'at least'} {lower:g}"]
    bounds += [f"at most {schema['maximum']:,}".removesuffix(".0")] if "maximum" in schema else []
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
    word = schema.get("description") or words.get(str(schema.get("type")), "a value")
    return " ".join([word, " and ".join(bounds)]).strip()


def _models() -> Group:
    from moesim.desk.presets.models import model_preset, model_presets

    entries = []
    for name in model_presets():
        model = model_preset(name)
        total, active = model.total_parameters / 1e9, model.active_parameters / 1e9
        entries.append(
            Entry(
                name=name,
                summary=f"{len(model.moe_layers)} of {model.layers} layers with {model.experts} experts, top {model.top_k}, "
                f"hidden {model.hidden}, {total:.3g} B parameters ({active:.3g} B active), {model.expert_dtype}",
            )
        )
    return Group(name="models", written="model: {preset: NAME}", entries=tuple(entries))


def _gpus() -> Group:
    from moesim.facts.gpu_presets import gpu_presets

    entries = []
    for name, gpu in gpu_presets().items():
        flops = ", ".join(f"{dtype} {format_quantity(rate, 'flop/s')}" for dtype, rate in gpu.flops.items())
        entries.append(
            Entry(
                name=name,
                summary=f"{format_quantity(gpu.memory, 'B')} at {format_quantity(gpu.memory_bandwidth, 'B/s')}; {flops}; NVLink "
                f"{format_quantity(gpu.nvlink, 'B/s')} and network card {format_quantity(gpu.nic, 'B/s')}, one way",
            )
        )
    return Group(name="gpus", written="cluster: {gpu: NAME, ...}", entries=tuple(entries))
