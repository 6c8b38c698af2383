"""The ``compare:`` section: each variant is a partial policy, laid over the policy of the file."""

from __future__ import annotations

from typing import Any

from moesim.base.registry import SLOTS
from moesim.desk.shape import field_types, plugin_marker
from moesim.desk.yaml_tree import Node
from moesim.facts.scenario import Policy


def with_variants(tree: Node, written: Node) -> Node:
    """Return a scenario's tree in which every variant of ``compare`` is a whole policy.

    A section of another kind (or rule) than the base's replaces it, and so do ``null`` and a list; of the same kind, or with no kind
    named, its keys replace the base's keys one by one. An empty variant is the base policy itself. Where an override took the base's
    section away, a variant that names no kind still means the one that the file wrote: ``tree`` has the overrides, ``written`` has not.
    """
    compare = tree.child("compare")
    if compare is None or not isinstance(compare.value, dict):
        return tree
    base, first = tree.child("policy"), written.child("policy")
    variants = {name: _over(base, variant, first) for name, variant in compare.value.items()}
    return tree.with_child("compare", Node(variants, compare.place, compare.key))


def _over(base: Node | None, variant: Node, written: Node | None) -> Node:
    if variant.value is None:
        variant = Node({}, variant.place, variant.key)
    if base is None or not isinstance(base.value, dict) or not isinstance(variant.value, dict):
        return variant
    merged = dict(base.value)
    fields = field_types(Policy)
    for name, section in variant.value.items():
        marker = plugin_marker(fields.get(name))
        if marker is None:
            merged[name] = section
            continue
        tag = SLOTS[marker.slot].tag
        merged[name] = _section(merged.get(name), section, tag, marker.default)
        spelled = _spelled(merged[name], tag)
        if spelled is not None and spelled.child(tag) is None and marker.default is None and written is not None:
            merged[name] = _section(written.child(name), section, tag, None)
    return Node(merged, variant.place, variant.key)


def _section(base: Node | None, section: Node, tag: str, default: str | None) -> Node:
    """Return one section of a variant with the keys that it leaves to the base, whose kind is ``default`` if it names none."""
    old, new = _spelled(base, tag), _spelled(section, tag)
    if old is None or new is None:
        return section
    word, base_word = new.child(tag), old.child(tag)
    if word is not None and word.value != (base_word.value if base_word is not None else default):
        return section
    return Node({**old.value, **new.value}, new.place, new.key)


def _spelled(node: Node | None, tag: str) -> Node | None:
    """Return a section as a mapping: a bare word is the kind. None for anything else."""
    if node is None:
        return None
    if isinstance(node.value, str):
        return Node({tag: Node(node.value, node.place, node.place)}, node.place, node.key)
    return node if isinstance(node.value, dict) else None


def inherited(tree: Node, path: tuple[Any, ...]) -> bool:
    """Tell whether the value at ``compare.<name>.…`` is the base policy's own node, whose problems are reported there."""
    if len(path) < 3 or path[0] != "compare":
        return False
    base: Node | None = tree.child("policy")
    node: Node | None = tree
    for step in path[:2]:
        node = node.child(step) if node is not None else None
    for step in path[2:]:
        base = base.child(step) if base is not None else None
        node = node.child(step) if node is not None else None
        if node is not None and node is base:
            return True
    return False
