"""A plug-in that a scenario names and this process does not have: kept as it was written, so that a result can be read anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from moesim.base.errors import PluginError
from moesim.base.registry import SLOTS, kinds
from moesim.desk.shape import parts, plugin_marker
from moesim.desk.yaml_tree import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPlugin:
    """What the file says of a plug-in whose code was not loaded. It can be shown and written again, but not run.

    Parameters
    ----------
    slot : str
        Where it goes.
    kind : str
        The word that the file has for it.
    data : mapping
        Its other keys, as written; paths of files among them stay relative to the file.
    """

    slot: str
    kind: str
    data: Mapping[str, Any]

    def begin(self, setting: Any) -> NoReturn:  # noqa: ARG002 - the contract of plug-ins
        """Refuse to run."""
        self._refuse()

    def build(self) -> NoReturn:
        """Refuse to run."""
        self._refuse()

    def program(self, model: Any, workload: Any) -> NoReturn:  # noqa: ARG002 - the contract of schedules
        """Refuse to run."""
        self._refuse()

    def plain(self) -> dict[str, Any]:
        """Return the mapping of the file."""
        return {SLOTS[self.slot].tag: self.kind, **self.data}

    def _refuse(self) -> NoReturn:
        raise PluginError(
            f"the code of {self.slot} {self.kind!r} is not loaded: reading a result runs no plug-in; "
            f"load its scenario.yaml with load_scenario to run it again"
        )


def with_unknown(node: Node, annotation: Any) -> Node:
    """Return a tree in which an :class:`UnknownPlugin` stands for every section whose kind is not registered.

    Parameters
    ----------
    node : Node
        Of a scenario, or a part of it.
    annotation : type
        What it describes.
    """
    marker = plugin_marker(annotation)
    if marker is not None:
        tag = node.child(SLOTS[marker.slot].tag) if isinstance(node.value, dict) else node
        if tag is not None and isinstance(tag.value, str) and tag.value not in kinds(marker.slot):
            keys = node.value.items() if isinstance(node.value, dict) else ()
            data = {key: child.data() for key, child in keys if key != SLOTS[marker.slot].tag}
            return Node(UnknownPlugin(slot=marker.slot, kind=tag.value, data=data), node.place, node.key)
    for step, inner, child in list(parts(annotation, node)):
        new = with_unknown(child, inner)
        if new is not child and isinstance(step, str):
            node = node.with_child(step, new)
    return node
