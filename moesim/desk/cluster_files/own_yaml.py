"""moesim's own way to write a machine down: what ``wiring:`` of a scenario holds, in a file of its own."""

from __future__ import annotations

from typing import Any

from moesim.desk.cluster_files.faults import Fault, Source
from moesim.desk.structure import problems_of, structure
from moesim.desk.yaml_tree import Node, parse_yaml
from moesim.models.topology.wiring import WiredLink, Wiring, twice


def read(source: Source) -> Wiring:
    """Read vertices and links with units.

    Raises
    ------
    Fault
        With everything that is wrong, each with its line.
    """
    tree, problems = parse_yaml(source.text, source.path)
    if tree is None or not isinstance(tree.value, dict):
        raise Fault(problems or [source.fault("expected a mapping with the keys vertices and links").problems[0]])
    data: dict[str, Any] = tree.data()
    data.setdefault("source", source.name)
    _check_repeats(source, tree)
    wiring, error = structure(Wiring, data)
    if error is not None:
        problems += [problem for _, problem in problems_of(error, tree, Wiring)]
    if problems or not isinstance(wiring, Wiring):
        raise Fault(problems)
    return wiring


def _check_repeats(source: Source, tree: Node) -> None:
    """Refuse a link that repeats an earlier one here, where its line is known."""
    listed = tree.child("links")
    links: list[WiredLink] = []
    for item in listed.value if listed is not None and isinstance(listed.value, list) else ():
        link, error = structure(WiredLink, item.data())
        if error is not None:
            return  # the whole will say what is wrong with it
        links.append(link)
    repeated = twice(links)
    if repeated is not None and listed is not None:
        place = listed.value[repeated[0]].place
        raise source.fault(repeated[1], line=place.line, column=place.column)
