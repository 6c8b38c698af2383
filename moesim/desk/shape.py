"""What may stand where in a scenario file, read off the annotations of the dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from moesim.base.errors import PluginError
from moesim.base.fields import FilePath, Marker, Preset, ReadFile
from moesim.base.registry import SLOTS, PluginOf, kinds
from moesim.desk.yaml_tree import Node


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of the file: the dataclass behind it, and the key that chooses it (empty where there is no choice)."""

    cls: type
    tag: str = ""

    def keys(self) -> list[str]:
        """Return every key that the mapping may have."""
        return [*([self.tag] if self.tag else []), *field_types(self.cls)]


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the annotation of every field of a dataclass that its constructor takes, with markers.

    Raises
    ------
    PluginError
        If an annotation names something that its module does not know.
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        raise PluginError(f"the fields of {cls.__module__}.{cls.__qualname__} cannot be read: {error}") from error
    return {item.name: hints[item.name] for item in dataclasses.fields(cls) if item.init}


def marker_of(annotation: Any) -> Marker | None:
    """Return the :class:`~moesim.base.fields.Marker` of an annotated type, or None."""
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, Marker):
            return extra
    return None


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def bare(annotation: Any) -> Any:
    """Return an annotated type without its annotations."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def item_annotation(annotation: Any) -> Any:
    """Return what the values of a mapping or list annotation are, or None if it is neither."""
    inner = bare(annotation)
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if not isinstance(origin, type) or not arguments:
        return None
    if issubclass(origin, Mapping):
        return arguments[1]
    if issubclass(origin, (Sequence, set, frozenset)):
        return arguments[0]
    return None


def section_of(annotation: Any, node: Node) -> Section | None:
    """Return the section that a value is, or None where it is none or its kind is unknown."""
    for choice in alternatives(annotation):
        marker = marker_of(choice)
        if isinstance(marker, PluginOf):
            tag = SLOTS[marker.slot].tag
            chosen = node.child(tag) if isinstance(node.value, dict) else node
            word = chosen.value if chosen is not None else marker.default
            cls = kinds(marker.slot).get(word) if isinstance(word, str) else None
            return Section(cls, tag) if cls is not None else None
        cls = marker.cls if isinstance(marker, Preset) else bare(choice)
        if dataclasses.is_dataclass(cls) and isinstance(cls, type) and isinstance(node.value, dict):
            return Section(cls)
    return None


def parts(annotation: Any, node: Node) -> Iterator[tuple[str | int, Any, Node]]:
    """Yield (key, annotation, value) of everything directly inside a value that the annotations describe."""
    section = section_of(annotation, node)
    if section is not None:
        if isinstance(node.value, dict):
            for key, field_annotation in field_types(section.cls).items():
                child = node.child(key)
                if child is not None:
                    yield key, field_annotation, child
        return
    for choice in alternatives(annotation):
        item = item_annotation(choice)
        if item is not None and isinstance(node.value, (dict, list)):
            steps: Iterable[tuple[str | int, Node]] = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
            for step, child in steps:
                yield step, item, child
            return


def is_file(annotation: Any) -> bool:
    """Tell whether a field holds the path of a file."""
    return any(isinstance(marker_of(choice), FilePath) for choice in alternatives(annotation))


def is_profile(annotation: Any) -> bool:
    """Tell whether a field names a profile: a file of one's own, or a shipped one by its name."""
    markers = [marker_of(choice) for choice in alternatives(annotation)]
    return any(isinstance(marker, ReadFile) and marker.reader.partition("/")[0] == "profile" for marker in markers)


def is_name(text: str) -> bool:
    """Tell whether a text is a bare name such as ``h200-sxm`` and no path: it has no folder and no ending of a file."""
    return bool(text.strip()) and not any(part in text for part in ("/", "\\")) and not text.endswith((".yaml", ".yml"))


def files_to_read(annotation: Any, node: Node) -> Iterator[tuple[str, ReadFile]]:
    """Yield the name and the marker of every field of a section that holds the path of a file which the loader is to read."""
    section = section_of(annotation, node)
    for name, inner in field_types(section.cls).items() if section is not None else ():
        for choice in alternatives(inner):
            marker = marker_of(choice)
            if isinstance(marker, ReadFile):
                yield name, marker


def tag_of(annotation: Any) -> str:
    """Return the key that chooses a plug-in (``kind``, ``rule``), or an empty string."""
    marker = plugin_marker(annotation)
    return SLOTS[marker.slot].tag if marker is not None else ""


def plugin_marker(annotation: Any) -> PluginOf | None:
    """Return the marker of a field that holds a plug-in, or None."""
    return next((marker for choice in alternatives(annotation) if isinstance(marker := marker_of(choice), PluginOf)), None)


def annotation_at(annotation: Any, node: Node, steps: Sequence[str | int]) -> tuple[Any, Node | None]:
    """Follow a path; return the annotation there (None if unknown) and the value there (None if absent)."""
    current: Node | None = node
    for step in steps:
        found = next(((inner, child) for key, inner, child in parts(annotation, current) if key == step), None) if current else None
        if found is None:
            return None, None
        annotation, current = found
    return annotation, current
