"""``key=value`` words of the command line, put into the tree of a scenario file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moesim.base.errors import Problem
from moesim.desk.shape import annotation_at, tag_of
from moesim.desk.yaml_tree import Node, Place, parse_yaml


def label(override: str) -> str:
    """Return what a problem of an override calls its place."""
    return f"override {override}"


def apply_overrides(tree: Node, overrides: Iterable[str], annotation: Any) -> tuple[Node, list[Problem]]:
    """Return the tree with every override put in, in order.

    Parameters
    ----------
    tree : Node
        The file's top mapping; it is not changed.
    overrides : iterable of str
        ``policy.capacity.factor=1.1``: steps through the mappings, and a value in YAML. Absent mappings on the way are made; a
        bare plug-in name on the way (``placement: eplb``) becomes the mapping it stands for. Where a key itself holds dots, the
        longest key that exists is taken.
    annotation : type
        What the tree describes, for plug-in tags.

    Returns
    -------
    tree : Node
    problems : list of Problem
        Words that are no override or whose path passes through something that is no mapping; their place is the override.
    """
    problems: list[Problem] = []
    for override in overrides:
        place = Place(label(override))
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals or not path or not all(path.split(".")):
            problems.append(place.problem("", "write key=value, for example policy.capacity.factor=1.1"))
            continue
        value, wrong = parse_yaml(text, place.file)
        problems += [place.problem(path, problem.message) for problem in wrong]
        if wrong:
            continue
        node = value.moved(place) if value is not None else Node(None, place, place)
        tree, wrong = lay_over(tree, path, node, annotation)
        problems += wrong
    return tree, problems


def lay_over(tree: Node, path: str, value: Node, annotation: Any) -> tuple[Node, list[Problem]]:
    """Return the tree with a value at a dotted path, or the tree as it was and what is in the way; the rest is as in apply_overrides."""
    changed = _put(tree, steps_of(tree, path), value, annotation)
    return (changed, []) if isinstance(changed, Node) else (tree, [value.place.problem(path, changed)])


def steps_of(tree: Node, path: str) -> list[str]:
    """Return the steps of a dotted path; keys of the tree that hold dots themselves stay in one piece."""
    words, steps = path.split("."), []
    node: Node | None = tree
    while words:
        keys = node.value if node is not None and isinstance(node.value, dict) else {}
        taken = next((count for count in range(len(words), 1, -1) if ".".join(words[:count]) in keys), 1)
        step = ".".join(words[:taken])
        steps.append(step)
        words = words[taken:]
        node = node.child(step) if node is not None else None
    return steps


def _put(tree: Node, steps: list[str], value: Node, annotation: Any) -> Node | str:
    """Return the tree with ``value`` at ``steps``, or what is in the way."""
    trail: list[Node] = []
    node = tree
    for depth, step in enumerate(steps):
        if node.value is None:
            node = Node({}, value.place, value.place)  # a mapping that the override makes: what it lacks is its fault
        elif isinstance(node.value, str):
            tag = tag_of(annotation_at(annotation, tree, steps[:depth])[0])
            if tag:
                node = Node({tag: node}, node.place, node.key)
        if not isinstance(node.value, dict):
            kind = "a list; set all of it, as in key=[1, 2]" if isinstance(node.value, list) else f"{node.value!r}, not a mapping"
            return f"{'.'.join(steps[:depth])} is {kind}"
        trail.append(node)
        node = node.child(step) or Node(None, value.place, value.place)
    for parent, step in zip(reversed(trail), reversed(steps), strict=True):
        value = parent.with_child(step, value)
    return value
