"""Mappings of a JSON file as frozen dataclasses: every value goes through the marker of its field."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from moesim.base.errors import UsageError, did_you_mean
from moesim.desk.shape import alternatives, field_types, marker_of

R = TypeVar("R")


def read_record(cls: type[R], data: Any, where: str) -> R:
    """Build a dataclass from a mapping.

    Parameters
    ----------
    cls : type
        A dataclass whose fields carry markers of :mod:`moesim.base.fields`.
    data : mapping
        One value per field; a field with a default may be left out.
    where : str
        What the mapping is, for messages.

    Raises
    ------
    UsageError
        If a key is unknown or missing, or a value is not what its field takes; the message names all three.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: expected a mapping, got {type(data).__name__}")
    kind: Any = cls  # a dataclass, which type[R] cannot say
    annotations = field_types(kind)
    for key in data:
        if key not in annotations:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(str(key), annotations)}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in data:
            values[field.name] = _value(annotations[field.name], data[field.name], f"{where}: {field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: the key {field.name!r} is missing")
    return cls(**values)


def _value(annotation: Any, value: Any, where: str) -> Any:
    options = alternatives(annotation)
    if value is None and types.NoneType in options:
        return None
    for option in options:
        marker = marker_of(option)
        if marker is not None:
            try:
                return marker.parse(value)
            except ValueError as error:
                raise UsageError(f"{where}: {error}") from None
    return value
