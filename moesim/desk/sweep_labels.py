"""Short words for the cells of a sweep, as pictures have room for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from moesim.study.cell import Scalar
from moesim.study.sweep import ABSENT, short_names, word

MAPPING = re.compile(r"\{(?:kind|rule): ([^,{}\[\]]+)(?:, ([^{}\[\]]*))?\}")


def brief(text: str) -> str:
    """Return a value of an axis in fewer letters: a plug-in by its kind, and its single key without a name.

    Examples
    --------
    >>> brief("{rule: megatron, factor: 1.25}"), brief("{kind: loss_free}"), brief("null"), brief("0.1")
    ('megatron 1.25', 'loss_free', 'none', '0.1')
    >>> brief("{rule: megatron, factor: 1.25, drop: probs}")
    'megatron, factor: 1.25, drop: probs'
    """
    found = MAPPING.fullmatch(text)
    if found is None:
        return "none" if text == "null" else text
    kind, rest = found[1], found[2]
    if rest is None:
        return kind
    return f"{kind}, {rest}" if "," in rest else f"{kind} {rest.partition(': ')[2]}"


def cell_label(axes: Sequence[str], values: Mapping[str, Scalar]) -> str:
    """Return what is special of a cell: its values on those axes on which it has any.

    Examples
    --------
    >>> cell_label(["policy.capacity", "routing.noise"], {"policy.capacity": "{rule: megatron, factor: 1.25}"})
    'capacity=megatron 1.25'
    """
    short = short_names(axes)
    words = {axis: word(values.get(axis, ABSENT)) for axis in axes}
    return ", ".join(f"{short[axis]}={brief(text)}" for axis, text in words.items() if text)
