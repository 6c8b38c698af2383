"""From dataclasses back to the plain data of the scenario file: every default written out, quantities with their units."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moesim.base.fields import FilePath, Marker
from moesim.base.registry import SLOTS
from moesim.desk.shape import alternatives, bare, field_types, item_annotation, marker_of
from moesim.desk.unknown_plugin import UnknownPlugin

PathText = Callable[[str], str]


def plain_data(value: Any, annotation: Any, path_text: PathText) -> Any:
    """Return what the file says for a value.

    Parameters
    ----------
    value : object
        A section, a plug-in or a field.
    annotation : type
        Of the field that holds it.
    path_text : callable
        What to write for the absolute path of a file.

    Returns
    -------
    object
        Dictionaries, lists and scalars; reading them gives ``value`` again.
    """
    if value is None:
        return None
    if isinstance(value, UnknownPlugin):
        return value.plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        short = _text(value, annotation, path_text)
        return _section(value, path_text) if short is value else short
    item = next((found for choice in alternatives(annotation) if (found := item_annotation(choice)) is not None), Any)
    if isinstance(value, Mapping):
        return {str(key): plain_data(child, item, path_text) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(child, item, path_text) for child in value]
    if isinstance(value, (set, frozenset)):
        return [plain_data(child, item, path_text) for child in sorted(value)]
    return _text(value, annotation, path_text)


def _section(value: Any, path_text: PathText) -> dict[str, Any]:
    """Return a dataclass as a mapping; a plug-in's kind comes first."""
    slot = getattr(type(value), "slot", None)
    data = {SLOTS[slot].tag: type(value).kind} if slot in SLOTS else {}
    cls: type = type(value)
    for name, annotation in field_types(cls).items():
        data[name] = plain_data(getattr(value, name), annotation, path_text)
    return data


def _text(value: Any, annotation: Any, path_text: PathText) -> Any:
    """Return a value as its marker writes it: of a union, the first member that reads its own text back to the value."""
    choices = [(marker_of(choice), bare(choice)) for choice in alternatives(annotation)]
    markers = [marker for marker, kind in choices if marker is not None and kind is not type(None)]
    for marker in markers:
        if isinstance(marker, FilePath):
            return path_text(value)
        if len(markers) == 1 or _reads_back(marker, value):
            return marker.text(value)
    return value


def _reads_back(marker: Marker, value: Any) -> bool:
    try:
        return bool(marker.parse(marker.text(value)) == value)
    except (ValueError, TypeError, AttributeError):
        return False


def relative_to(folder: str | os.PathLike[str] | None) -> PathText:
    """Return a function that writes paths relative to a folder, with forward slashes; None leaves them absolute."""

    def text(path: str) -> str:
        if folder is None or not os.path.isabs(path):
            return Path(path).as_posix()
        try:
            return Path(os.path.relpath(path, Path(folder).resolve())).as_posix()
        except ValueError:  # another drive
            return Path(path).as_posix()

    return text
