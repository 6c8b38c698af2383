"""Paths of files in a matrix, as absolute as those of the sections that they are laid over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moesim.desk.matrix import EXCLUDE, INCLUDE
from moesim.desk.overrides import lay_over, steps_of
from moesim.desk.shape import annotation_at, is_file
from moesim.desk.yaml_tree import Node
from moesim.facts.scenario import Scenario

Resolve = Callable[[Node, Any, str], Node]


def with_absolute_paths(node: Node, tree: Node, resolve: Resolve) -> Node:
    """Return the node of a matrix without problems, with absolute paths where its keys take files.

    Parameters
    ----------
    node : Node
        The value of ``matrix:``.
    tree : Node
        The scenario that it stands in.
    resolve : callable
        Makes one path absolute; given its node, the annotation of its field and its dotted path.
    """
    for key, child in node.value.items():
        if not isinstance(child.value, list):
            continue  # a range
        where = f"matrix.{key}"
        if key in (INCLUDE, EXCLUDE):
            items = [_of_cell(cell, tree, resolve, f"{where}.{index}") for index, cell in enumerate(child.value)]
        else:
            items = [_of_value(item, key, tree, resolve, where) for item in child.value]
        node = node.with_child(key, Node(items, child.place, child.key))
    return node


def _of_cell(cell: Node, tree: Node, resolve: Resolve, where: str) -> Node:
    values = {key: _of_value(item, key, tree, resolve, f"{where}.{key}") for key, item in cell.value.items()}
    return Node(values, cell.place, cell.key)


def _of_value(item: Node, key: str, tree: Node, resolve: Resolve, where: str) -> Node:
    if not isinstance(item.value, str):
        return item
    laid, wrong = lay_over(tree, key, item, Scenario)
    annotation = None if wrong else annotation_at(Scenario, laid, steps_of(laid, key))[0]
    return resolve(item, annotation, where) if annotation is not None and is_file(annotation) else item
