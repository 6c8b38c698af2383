"""From a tree to dataclasses: pydantic validates, and every complaint of it becomes a problem with a place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moesim.base.errors import FieldError, PluginError, Problem, did_you_mean
from moesim.desk.shape import Section, annotation_at, item_annotation, section_of
from moesim.desk.yaml_tree import Node, dotted

Path = tuple[str | int, ...]


@cache
def adapter(cls: Any) -> TypeAdapter[Any]:
    """Return pydantic's reader of a type; made once, because making it takes longer than using it."""
    return TypeAdapter(cls)


def structure(cls: Any, data: Any) -> tuple[Any, ValidationError | None]:
    """Build ``cls`` from plain data.

    Returns
    -------
    built : object
        None where there is an error.
    error : ValidationError or None

    Raises
    ------
    PluginError
        If a plug-in fails in a way that no input should cause.
    """
    try:
        return adapter(cls).validate_python(data), None
    except ValidationError as error:
        return None, error
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"a plug-in failed while its keys were read: {type(error).__name__}: {error}") from error


def problems_of(
    error: ValidationError, tree: Node, annotation: Any, *, prefix: Path = (), also_known: Sequence[str] = ()
) -> Iterator[tuple[Path, Problem]]:
    """Yield (path, problem) for everything that pydantic found.

    Parameters
    ----------
    error : ValidationError
        Of data made from ``tree``.
    tree : Node
        Where the places come from.
    annotation : type
        What ``tree`` describes.
    prefix : tuple
        The path of ``tree`` in its file.
    also_known : sequence of str
        Keys that the top mapping may have beyond the fields of ``annotation``.
    """
    for item in error.errors(include_url=False):
        steps, node = _follow(tree, item["loc"])
        yield _problem(item, steps, node, tree, annotation, prefix, also_known)


def _follow(tree: Node, location: Sequence[str | int]) -> tuple[Path, Node]:
    """Walk as far as a location exists in the tree; pydantic adds steps of its own for unions and keys."""
    steps: list[str | int] = []
    node = tree
    for step in location:
        child = node.child(step)
        if child is not None:
            steps.append(step)
            node = child
    return tuple(steps), node


def _problem(
    item: Any, steps: Path, node: Node, tree: Node, annotation: Any, prefix: Path, also_known: Sequence[str]
) -> tuple[Path, Problem]:
    cause = item.get("ctx", {}).get("error")
    path, place, message = steps, node.place, str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    match item["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            parent = _parent(tree, steps)
            section = _section_at(annotation, tree, steps[:-1], parent)
            keys = [*(section.keys() if section else []), *(also_known if len(steps) == 1 else [])]
            place, message = node.key, f"unknown key {steps[-1]!r}{did_you_mean(str(steps[-1]), keys)}"
        case "missing" | "missing_keyword_only_argument":
            place, message = node.key, f"missing key {item['loc'][-1]!r}"
        case "unknown_kind":
            tag = node.child(item["ctx"]["tag"])
            if tag is not None:
                path, place = (*steps, item["ctx"]["tag"]), tag.place
        case "dataclass_type" | "mapping_type" | "dict_type":
            message = f"expected a mapping{_with_keys(annotation, tree, steps)}, not {_shown(node)}"
        case "tuple_type" | "list_type":
            message = f"expected a list, not {_shown(node)}"
        case "string_type":
            message = f"{_shown(node)} is not text; put it in quotes"
        case _ if isinstance(cause, FieldError):
            path, message = (*steps, cause.field), cause.message
            child = node.child(cause.field)
            place = child.key if child is not None else node.key
        case _ if message.startswith("missing key"):
            place = node.key
    return prefix + path, place.problem(dotted(prefix + path), message)


def _parent(tree: Node, steps: Path) -> Node:
    node = tree
    for step in steps[:-1]:
        node = node.child(step) or node
    return node


def _section_at(annotation: Any, tree: Node, steps: Path, node: Node) -> Section | None:
    there, _ = annotation_at(annotation, tree, steps)
    return section_of(there, node) if there is not None else None


def _with_keys(annotation: Any, tree: Node, steps: Path) -> str:
    there, _ = annotation_at(annotation, tree, steps)
    if there is None:
        return ""
    section = section_of(there, Node({}, tree.place, tree.key))
    if section is not None:
        return f" with the keys {', '.join(section.keys())}"
    return " of names" if item_annotation(there) is not None else ""


def _shown(node: Node) -> str:
    """Return a value as the user would recognise it, cut short."""
    data = node.data()
    if data is None:
        return "nothing"
    if isinstance(data, bool):
        return str(data).lower()
    if isinstance(data, dict):
        return "a mapping"
    if isinstance(data, list):
        return "a list"
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."
