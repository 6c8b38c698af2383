"""The ``matrix:`` section and the axes of the command line: which keys take which values, and which combinations of them are meant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from moesim.base.errors import Problem, did_you_mean
from moesim.desk.overrides import label
from moesim.desk.ranges import is_range, split, values_of
from moesim.desk.shape import field_types
from moesim.desk.yaml_tree import Node, Place, parse_yaml
from moesim.facts.scenario import Scenario
from moesim.study.cell import Scalar

INCLUDE, EXCLUDE = "include", "exclude"
LONGEST = 100_000
"""Cells of one study; more are a slip of the keyboard."""

NO_AXES = ("matrix", "compare", "plugins")
"""Keys of a scenario that cannot differ between the cells of one study."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value of one key: as people read it, and as it is laid over the file."""

    label: Scalar
    node: Node


@dataclass(frozen=True, slots=True)
class Axis:
    """One dotted key and the values that it takes."""

    key: str
    place: Place
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Axes, combinations that are left out, and cells that come on top; the latter two as settings by key."""

    axes: tuple[Axis, ...] = ()
    include: tuple[dict[str, Setting], ...] = ()
    exclude: tuple[dict[str, Setting], ...] = ()


@dataclass(slots=True)
class _Reading:
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, place: Place, path: str, message: str) -> None:
        self.problems.append(place.problem(path, message))


def read_matrix(node: Node | None) -> tuple[Matrix, list[Problem]]:
    """Read the value of ``matrix:``.

    Parameters
    ----------
    node : Node or None
        None, or a node of null or of an empty mapping, is a matrix without axes.

    Returns
    -------
    matrix : Matrix
        Without what is wrong.
    problems : list of Problem
        Each at its line and column. What a key accepts is not checked here: that is known only when a whole cell is read.
    """
    if node is None or node.value is None:
        return Matrix(), []
    reading = _Reading()
    if not isinstance(node.value, dict):
        reading.wrong(
            node.place, "matrix", "expected a mapping of dotted keys to lists of values, such as 'policy.capacity.factor: [1, 1.25]'"
        )
        return Matrix(), reading.problems
    axes = []
    for key, value in node.value.items():
        if key in (INCLUDE, EXCLUDE) or not _is_key(key, value.key, f"matrix.{key}", reading):
            continue
        settings = _settings(value, f"matrix.{key}", reading)
        if settings:
            axes.append(Axis(key, value.key, settings))
    include = _cells(node.child(INCLUDE), INCLUDE, reading)
    exclude = _cells(node.child(EXCLUDE), EXCLUDE, reading)
    known = {axis.key: axis for axis in axes}
    for index, cell in enumerate(exclude):
        for key, setting in cell.items():
            path, place = f"matrix.exclude.{index}.{key}", setting.node.place
            if key not in node.value:
                reading.wrong(place, path, f"excludes nothing: {key} is no axis of the matrix{did_you_mean(key, known)}")
            elif key in known and setting.label not in [item.label for item in known[key].settings]:
                values = ", ".join(str(item.label) for item in known[key].settings[:12])
                reading.wrong(place, path, f"excludes nothing: {key} never is {setting.label} (its values: {values})")
    return Matrix(tuple(axes), tuple(include), tuple(exclude)), reading.problems


def read_words(words: Iterable[str]) -> tuple[list[Axis], list[str], list[Problem]]:
    """Tell the axes of a command line from its ordinary overrides.

    Parameters
    ----------
    words : iterable of str
        ``key=a,b,c``, ``key=0.8..2.0:0.1`` (from, to, step; the end belongs to it), ``key=256..4096:*2`` (from, to, factor), either with a
        unit behind it (``100..400:100 Gb/s``), or ``key=value``. Commas inside brackets, braces and quotes separate nothing.

    Returns
    -------
    axes : list of Axis
    overrides : list of str
        Words that are no axes.
    problems : list of Problem
    """
    axes, overrides, reading = [], [], _Reading()
    for word in words:
        key, equals, text = word.partition("=")
        key, pieces = key.strip(), split(text)
        if not equals or (len(pieces) == 1 and not is_range(text)):
            overrides.append(word)
            continue
        place = Place(label(word))
        if not _is_key(key, place, key, reading):
            continue
        settings = []
        for piece in pieces:
            node, wrong = parse_yaml(piece, place.file)
            if wrong or not piece.strip():
                reading.wrong(place, key, wrong[0].message if wrong else "there is nothing between two commas; write null for no value")
                continue
            node = (node or Node(None, place, place)).moved(place)
            settings += _expanded(node, key, reading)
        if settings := _unlike(settings, key, reading):
            axes.append(Axis(key, place, tuple(settings)))
    return axes, overrides, reading.problems


def with_words(matrix: Matrix, axes: Iterable[Axis], overrides: Iterable[str]) -> Matrix:
    """Return a matrix with the axes of the command line: each takes the place of the file's axis of that key, or comes last.

    An ordinary override of a key that is an axis leaves one value of it.
    """
    found = {axis.key: axis for axis in matrix.axes} | {axis.key: axis for axis in axes}
    for word in overrides:
        key, equals, text = word.partition("=")
        key, place = key.strip(), Place(label(word))
        node, wrong = parse_yaml(text, place.file)
        if equals and key in found and not wrong:
            node = (node or Node(None, place, place)).moved(place)
            found[key] = Axis(key, place, (_setting(node),))
    return Matrix(tuple(found.values()), matrix.include, matrix.exclude)


def _cells(node: Node | None, word: str, reading: _Reading) -> list[dict[str, Setting]]:
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list):
        reading.wrong(
            node.place, f"matrix.{word}", f"expected a list of mappings, such as '- {{policy.capacity.factor: 1.25}}', not {_shown(node)}"
        )
        return []
    cells = []
    for index, item in enumerate(node.value):
        path = f"matrix.{word}.{index}"
        if not isinstance(item.value, dict) or not item.value:
            reading.wrong(item.place, path, f"expected a mapping of dotted keys to values, not {_shown(item)}")
            continue
        cells.append({key: _setting(value) for key, value in item.value.items() if _is_key(key, value.key, f"{path}.{key}", reading)})
    return cells


def _is_key(key: Any, place: Place, path: str, reading: _Reading) -> bool:
    """Tell whether a dotted key may differ between cells; say what is wrong with it otherwise."""
    words = str(key).split(".")
    known = [name for name in field_types(Scenario) if name not in NO_AXES]
    if not all(word.strip() for word in words):
        reading.wrong(place, path, f"{key!r} is no dotted key; write one such as policy.capacity.factor")
    elif words[0] in NO_AXES:
        reading.wrong(place, path, f"{words[0]} is the same in all cells of a study")
    elif words[0] not in known:
        reading.wrong(place, path, f"unknown key {words[0]!r}{did_you_mean(words[0], known)}")
    else:
        return True
    return False


def _settings(node: Node, path: str, reading: _Reading) -> tuple[Setting, ...]:
    if isinstance(node.value, list):
        if not node.value:
            reading.wrong(node.place, path, "the list of values is empty")
        found = [setting for item in node.value for setting in _expanded(item, path, reading)]
    elif isinstance(node.value, str) and is_range(node.value):
        found = _expanded(node, path, reading)
    else:
        reading.wrong(node.place, path, f"expected a list of values or a range such as 0.8..2.0:0.1, not {_shown(node)}")
        found = []
    return tuple(_unlike(found, path, reading))


def _unlike(settings: list[Setting], path: str, reading: _Reading) -> list[Setting]:
    """Return the settings without those that are there twice, which are problems."""
    found: dict[str, Setting] = {}
    for setting in settings:
        key = repr(setting.label)
        if key in found:
            reading.wrong(setting.node.place, path, f"the value {_text(setting.label)} is there twice")
        found.setdefault(key, setting)
    return list(found.values())


def _expanded(node: Node, path: str, reading: _Reading) -> list[Setting]:
    """Return the settings that a value stands for: those of a range, or itself."""
    if not isinstance(node.value, str) or not is_range(node.value):
        return [_setting(node)]
    try:
        values = values_of(node.value)
    except ValueError as error:
        reading.wrong(node.place, path, f"{node.value}: {error}")
        return []
    return [Setting(value, Node(value, node.place, node.key)) for value in values]


def _setting(node: Node) -> Setting:
    data = node.data()
    return Setting(_text(data) if isinstance(data, (dict, list)) else data, node)


def _text(value: Any) -> str:
    """Return a value as one line of YAML."""
    if not isinstance(value, (dict, list)):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)).strip()


def _shown(node: Node) -> str:
    text = "nothing" if node.value is None else repr(_text(node.data()))
    return text if len(text) <= 60 else f"{text[:57]}..."
