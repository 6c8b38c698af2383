"""YAML text as a tree in which every value knows its line and column, with every problem of the text at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import yaml

from moesim.base.errors import Problem
from moesim.desk import yaml_core

DEEPEST = 64
_TOO_DEEP = f"values are nested more than {DEEPEST} deep"
LARGEST = 100_000
"""Values in a tree after aliases are spelled out: an alias of aliases can otherwise fill the memory from ten lines."""


class Place(NamedTuple):
    """Where something stands; line and column count from 1, or are 0 outside a file."""

    file: str
    line: int = 0
    column: int = 0

    def problem(self, path: str, message: str) -> Problem:
        """Return a problem at this place."""
        return Problem(file=self.file, line=self.line, column=self.column, path=path, message=message)


@dataclass(frozen=True, slots=True)
class Node:
    """One value; ``key`` is the place of its key, or of itself where it has none."""

    value: Any
    place: Place
    key: Place

    def child(self, step: str | int) -> Node | None:
        """Return the value under a key or at an index, or None."""
        if isinstance(self.value, dict):
            found = self.value.get(step)
            return found if isinstance(found, Node) else None
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]  # type: ignore[no-any-return]
        return None

    def with_child(self, key: str, child: Node) -> Node:
        """Return this mapping with one value set; the order of the other keys stays."""
        return replace(self, value={**self.value, key: child})

    def without(self, *keys: str) -> Node:
        """Return this mapping without some keys."""
        return replace(self, value={key: child for key, child in self.value.items() if key not in keys})

    def data(self) -> Any:
        """Return plain dictionaries, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.data() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.data() for child in self.value]
        return self.value

    def moved(self, place: Place) -> Node:
        """Return the same values, all at one place (those of an override)."""
        if isinstance(self.value, dict):
            return Node({key: child.moved(place) for key, child in self.value.items()}, place, place)
        if isinstance(self.value, list):
            return Node([child.moved(place) for child in self.value], place, place)
        return Node(self.value, place, place)


def dotted(steps: tuple[str | int, ...] | list[str | int]) -> str:
    """Return ``policy.capacity.factor`` for the steps of a path."""
    return ".".join(str(step) for step in steps)


def parse_yaml(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """Read YAML text.

    Parameters
    ----------
    text : str
        One YAML document.
    file : str
        What problems call the text, usually the path as the user wrote it.

    Returns
    -------
    tree : Node or None
        None where the text is not YAML or holds nothing. Where a value is faulty the tree holds the likeliest meaning, so
        that later checks can go on.
    problems : list of Problem
        Syntax errors (YAML reading stops at the first), repeated keys, tags, leading zeros, recursion.
    """
    builder = _Builder(file)
    try:
        for event in yaml.parse(text, Loader=_parser()):
            builder.take(event)
            if builder.stopped:
                break
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        return None, [*builder.problems, _syntax(error, text, file)]
    return (None if builder.stopped else builder.root), builder.problems


@cache
def _parser() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _syntax(error: Exception, text: str, file: str) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = error.problem or "unreadable"
        start = error.context_mark
        context = f" ({error.context}" + (f" that starts in line {start.line + 1}" if start else "") + ")" if error.context else ""
        if mark is None:
            return Place(file).problem("", f"this is not YAML: {what}{context}")
        if "nesting depth" in what:
            # Newer releases of libyaml have a limit of their own and look ahead, so they may stop before the first event.
            return Place(file, mark.line + 1, mark.column + 1).problem("", _TOO_DEEP)
        hint = _hint(what, text.split("\n")[mark.line : mark.line + 1], mark.column)
        return Place(file, mark.line + 1, mark.column + 1).problem("", f"this is not YAML: {what}{context}{hint}")
    if isinstance(error, (yaml.reader.ReaderError, UnicodeError)):
        at = next((at for at, character in enumerate(text) if _NOT_PRINTABLE.match(character)), 0)
        before = text[:at]
        place = Place(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        return place.problem("", f"this is not YAML: the character U+{ord(text[at]):04X} is not allowed")
    return Place(file).problem("", "values are nested too deeply")


_NOT_PRINTABLE = re.compile(r"[^\t\n\r\x20-\x7E\x85\xA0-\uD7FF\uE000-\uFEFE\uFF00-\uFFFD\U00010000-\U0010FFFF]")


def _hint(what: str, line: list[str], column: int) -> str:
    """Return the likely cause of a syntax error."""
    if not line:
        return ""
    if "\t" in line[0][: len(line[0]) - len(line[0].lstrip())]:
        return "; a tab cannot indent: use spaces"
    if "mapping values" in what:
        return "; text that holds ': ' needs quotes, and keys of one mapping the same indent"
    if "cannot start any token" in what and column < len(line[0]):
        return f"; text that starts with {line[0][column]} needs quotes"
    return ""


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    value: Any
    place: Place
    key: Place
    anchor: str | None
    size: int = 1
    waiting: tuple[str, Place, bool] | None = None
    merged: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class _Builder:
    """Build nodes from parser events without recursion: the parser's own composer overflows the stack on deep input."""

    file: str
    root: Node | None = None
    problems: list[Problem] = field(default_factory=list)
    stopped: bool = False
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[Node | None, int]] = field(default_factory=dict)
    documents: int = 0

    def take(self, event: yaml.Event) -> None:
        mark = event.start_mark
        place = Place(self.file, mark.line + 1, mark.column + 1) if mark else Place(self.file)
        match event:
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    self.stop(place, "a second YAML document starts here; one file holds one scenario")
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self.open(event, place)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self.close()
            case yaml.AliasEvent():
                self.alias(event, place)
            case yaml.ScalarEvent():
                self.scalar(event, place)

    def stop(self, place: Place, message: str, *, path: bool = True) -> None:
        self.problems.append(place.problem(dotted(self.path()) if path else "", message))
        self.stopped = True

    def path(self) -> list[str | int]:
        steps: list[str | int] = []
        for frame in self.stack:
            if isinstance(frame.value, list):
                steps.append(len(frame.value))
            elif frame.waiting:
                steps.append(frame.waiting[0])
        return steps

    def complain(self, place: Place, message: str) -> None:
        self.problems.append(place.problem(dotted(self.path()), message))

    @property
    def wants_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].value, dict) and self.stack[-1].waiting is None

    def open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent, place: Place) -> None:
        if self.wants_key:
            self.stop(place, "a key must be one word, not a mapping or a list")
            return
        if len(self.stack) >= DEEPEST:
            self.stop(place, _TOO_DEEP, path=False)
            return
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in {None, "!", yaml_core.TAG + ("map" if mapping else "seq")}:
            self.complain(place, f"the tag {event.tag} has no meaning here; leave it out")
        if event.anchor:
            self.anchors[event.anchor] = (None, 0)
        self.stack.append(_Open({} if mapping else [], place, self.key_of(place), event.anchor))

    def key_of(self, place: Place) -> Place:
        """Return the place of the key that waits for this value."""
        waiting = self.stack[-1].waiting if self.stack else None
        return waiting[1] if waiting else place

    def close(self) -> None:
        frame = self.stack.pop()
        if isinstance(frame.value, dict):
            for other in frame.merged:
                for key, child in other.value.items():
                    frame.value.setdefault(key, child)
        self.add(Node(frame.value, frame.place, frame.key), frame.size, frame.anchor)

    def alias(self, event: yaml.AliasEvent, place: Place) -> None:
        if self.wants_key:
            self.stop(place, "a key must be one word, not an alias")
            return
        if event.anchor not in self.anchors:
            self.stop(place, f"no anchor &{event.anchor} stands before this alias")
            return
        node, size = self.anchors[event.anchor]
        if node is None:
            self.stop(place, f"*{event.anchor} stands inside its own anchor")
            return
        self.add(replace(node, key=self.key_of(place)), size, None)

    def scalar(self, event: yaml.ScalarEvent, place: Place) -> None:
        if self.wants_key:
            plain = event.style in {None, ""} and event.tag is None
            self.key(str(event.value), place, merge=plain and event.value == "<<")
            return
        self.add(Node(self.meaning(event, place), place, self.key_of(place)), 1, event.anchor)

    def meaning(self, event: yaml.ScalarEvent, place: Place) -> Any:
        text = str(event.value)
        try:
            if event.tag not in {None, "!"}:
                return yaml_core.tagged(text, str(event.tag))
            if event.tag == "!" or not event.implicit[0]:
                return text
            wrong = yaml_core.leading_zero(text)
            if wrong:
                self.complain(place, wrong)
            return yaml_core.plain(text)
        except ValueError as error:
            self.complain(place, str(error))
            return None

    def key(self, name: str, place: Place, *, merge: bool) -> None:
        frame = self.stack[-1]
        frame.waiting = (name, place, merge)
        first = frame.value.get(name)
        if first is not None and not merge:
            self.complain(place, f"duplicate key {name!r} (first in line {first.key.line})")

    def add(self, node: Node, size: int, anchor: str | None) -> None:
        if anchor:
            self.anchors[anchor] = (node, size)
        if not self.stack:
            self.root = node
            return
        frame = self.stack[-1]
        frame.size += size
        if frame.size > LARGEST:
            self.stop(node.place, f"with its aliases this is more than {LARGEST} values")
        elif isinstance(frame.value, list):
            frame.value.append(node)
        elif frame.waiting:
            name, _, merge = frame.waiting
            if merge:
                frame.merged += self.merged(node)
            else:
                frame.value[name] = node
            frame.waiting = None

    def merged(self, node: Node) -> Iterator[Node]:
        """Yield the mappings that a ``<<`` key brings."""
        for part in node.value if isinstance(node.value, list) else [node]:
            if isinstance(part.value, dict):
                yield part
            else:
                self.complain(part.place, "<< merges mappings; this is none")
